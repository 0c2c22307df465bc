"""A wheel with compiled engines, where there is no compiler."""

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from helpers.wheels import wheel_of
from solm.backends.cpu.build import find_compiler
from solm.backends.cpu.library import best_variant, usable_features, variants_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_compiler() is None, reason="no C++ compiler here"),
    pytest.mark.skipif(not variants_of(platform.machine()), reason="no instruction set is known"),
]
PROBE = """
import json, sys, solm
from solm.backends.cpu.library import asked_engine, choose_engine
choice = choose_engine(*asked_engine())
lm = solm.load(sys.argv[1], backend="cpu")
texts = [lm.generate("the fox", max_new_tokens=24, budget=budget, seed=0).text for budget in ("keep=1", "keep=0.7")]
print(json.dumps({"home": solm.__file__, "variant": choice.variant, "ready": choice.path is not None, "texts": texts}))
"""


@pytest.fixture(scope="module")
def wheel():
    return wheel_of(platform.machine())


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A Python that has the wheel, and everything else from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages), str(wheel)]
    subprocess.run(command, check=True)
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def told(python, model, tmp_path, **environment):
    """What a process says of its engine and decodes, on a path without a compiler."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CXX", "SOLM_CXXFLAGS")}
    clean |= {"PATH": "/nowhere", "SOLM_CACHE": str(tmp_path / "cache"), **environment}
    return subprocess.run([str(python), "-c", PROBE, str(model)], env=clean, capture_output=True, text=True)


def test_it_runs_the_full_engine_without_a_compiler(installed, tiny_folder, tmp_path):
    best = best_variant(platform.machine(), usable_features())
    done = told(installed, tiny_folder, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert Path(found["home"]).is_relative_to(installed.parents[1])
    assert (found["variant"], found["ready"]) == (best.name, True)
    assert not list((tmp_path / "cache").glob("engine-*.so"))
    for variant in variants_of(platform.machine()):
        done = told(installed, tiny_folder, tmp_path, SOLM_CPU=variant.name)
        if variant.missing(usable_features()):
            assert "this machine cannot run" in done.stderr
            continue
        other = json.loads(done.stdout)
        assert (other["variant"], other["ready"]) == (variant.name, True)
        assert other["texts"] == found["texts"]
    assert "needs a C++20 compiler" in told(installed, tiny_folder, tmp_path, SOLM_CPU="native").stderr


def test_it_is_small_and_runs_on_common_systems(wheel):
    assert wheel.stat().st_size < 8e6
    if shutil.which("auditwheel", path=Path(sys.executable).parent) is None:
        pytest.skip("auditwheel is not installed")
    command = [str(Path(sys.executable).parent / "auditwheel"), "show", str(wheel)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert f'"manylinux_2_34_{platform.machine()}"' in " ".join(shown.split())


@pytest.mark.skipif(platform.machine() == "aarch64", reason="it is this machine's own wheel")
@pytest.mark.skipif(shutil.which("aarch64-linux-gnu-g++") is None, reason="apt install g++-aarch64-linux-gnu")
def test_a_wheel_for_arm_has_all_instruction_sets_of_arm():
    """Whether they run is for tests/unit/backends/cpu/test_arm.py to say."""
    built = wheel_of("aarch64")
    assert built.name.endswith("-py3-none-linux_aarch64.whl")
    assert built.stat().st_size < 8e6
    with zipfile.ZipFile(built) as content:
        names = {name for name in content.namelist() if "/prebuilt/" in name}
        kinds = sorted(Path(name).name.split("-")[1] for name in names)
        assert kinds == ["dotprod", "i8mm", "neon"]
        for name in names:
            file = content.read(name)
            assert (file[:4], int.from_bytes(file[18:20], "little")) == (b"\x7fELF", 183)
