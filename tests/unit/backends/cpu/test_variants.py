"""Which engine runs: by processor, by what a user asks for, and by what came with the package."""

import re
import shutil

import pytest

from solm.backends.cpu import build, library
from solm.backends.cpu.library import VARIANTS, best_variant, variant_named
from solm.core.errors import SolmError

AVX2 = build.library_name("avx2")
NEEDS = {variant.name: frozenset(variant.needs) for variant in VARIANTS}


@pytest.mark.parametrize(
    ("machine", "features", "best"),
    [
        ("x86_64", NEEDS["avx512"] | {"avx512_bf16"}, "avx512"),  # Zen 4
        ("x86_64", NEEDS["amx"], "avx512"),  # Sapphire Rapids
        ("x86_64", NEEDS["avx512"] - {"avx512_vnni"}, "avx2"),  # Skylake
        ("x86_64", NEEDS["avx2"] - {"fma"}, "sse4"),
        ("x86_64", frozenset({"sse2"}), None),
        ("aarch64", NEEDS["i8mm"], "i8mm"),
        ("aarch64", frozenset({"asimd", "fp"}), "neon"),  # Raspberry Pi 4
    ],
)
def test_the_best_variant_is_the_first_that_the_processor_runs(machine, features, best):
    found = best_variant(machine, features)
    assert (found and found.name) == best


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("avx1024", "unknown instruction set 'avx1024' for x86_64; choose one of amx, avx512, avx2, sse4, native"),
        ("avx512", "cannot run avx512, it lacks avx512bw, avx512_vnni; choose avx2"),
    ],
)
def test_what_cannot_be_forced_is_told_in_one_line(name, message):
    features = NEEDS["avx2"] | NEEDS["avx512"] - {"avx512_vnni", "avx512bw"}
    with pytest.raises(SolmError, match=message) as error:
        variant_named(name, "x86_64", features)
    assert "\n" not in str(error.value)
    assert variant_named("sse4", "x86_64", features).name == "sse4"


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A folder of libraries beside the package, on a processor with AVX2 and no AVX-512; they are no real ones."""
    folder = tmp_path / "prebuilt"
    folder.mkdir()
    monkeypatch.setattr(build, "PREBUILT", folder)
    monkeypatch.setattr(library, "cpu_features", lambda: NEEDS["avx2"])
    monkeypatch.setattr(library.platform, "machine", lambda: "x86_64")
    for name in ("avx2", "sse4"):
        (folder / build.library_name(name)).write_bytes(b"")
    return folder


def test_what_came_with_the_package_is_taken(beside):
    found = library.choose_engine("", "")
    assert (found.variant, found.path) == ("avx2", beside / AVX2)
    assert library.choose_engine("sse4", "").path == beside / build.library_name("sse4")
    for asked, flags in (("native", ""), ("", "-g"), ("native", "-g")):
        found = library.choose_engine(asked, flags)
        assert (found.variant, found.path) == ("native", None)
        assert found.flags == ("-march=native", *flags.split())
    assert library.choose_engine("sse4", "-g").flags == ("-march=x86-64-v2", "-g")
    shutil.rmtree(beside)
    assert library.choose_engine("", "").variant == "native"
    assert library.choose_engine("sse4", "").flags == ("-march=x86-64-v2",)


def barred(monkeypatch):
    """A cache folder on a file system where nothing may be executed."""
    real = build.os.statvfs(build.PREBUILT)
    barred = type(real)((*real[:8], real.f_flag | build.os.ST_NOEXEC, *real[9:]))
    monkeypatch.setattr(build.os, "statvfs", lambda path: barred)


@pytest.mark.parametrize(
    ("spoil", "asked", "reason"),
    [
        (lambda _: (build.PREBUILT / AVX2).write_bytes(b"?"), {}, "cannot be loaded: .*; delete .*avx2"),
        (lambda _: None, {"SOLM_CPU": "avx512"}, "cannot run avx512, it lacks .*; choose avx2"),
        (
            lambda _: None, {"SOLM_CXXFLAGS": "-DFRESH", "SOLM_CACHE": "/proc/solm"},
            "cannot be compiled to /proc/solm: .*; set SOLM_CACHE to another folder",
        ),
        (barred, {"SOLM_CXXFLAGS": "-DFRESH"}, "where nothing may be executed; set SOLM_CACHE to another folder"),
    ],
    ids=["damaged", "forced", "unwritable cache folder", "cache folder without execution"],
)  # fmt: skip
def test_where_the_engine_cannot_run_torch_does(beside, tiny_folder, caplog, monkeypatch, spoil, asked, reason):
    import solm

    spoil(monkeypatch)
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    library._library.cache_clear()
    try:
        lm = solm.load(tiny_folder)
        assert lm.backend.name.startswith("torch")
        assert re.search(reason, caplog.text)
        with pytest.raises(SolmError, match=reason) as error:
            solm.load(tiny_folder, backend="cpu")
        assert "\n" not in str(error.value)
    finally:
        library._library.cache_clear()
