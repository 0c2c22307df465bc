"""Programs on an emulated Intel processor with AVX-512 and AMX: Bochs, which starts Debian's kernel from a CD."""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

GUEST = Path(__file__).with_name("guest")
INSTALL = (
    "apt install bochs bochs-term vgabios isolinux syslinux-common genisoimage linux-image-cloud-amd64"
    " linux-headers-cloud-amd64"
)
_LOADERS = ("/usr/lib/ISOLINUX/isolinux.bin", "/usr/lib/syslinux/modules/bios/ldlinux.c32")
_BIOS, _VIDEO = "/usr/share/bochs/BIOS-bochs-latest", "/usr/share/vgabios/vgabios.bin"
# clearcpuid: Linux would not start, because Bochs lacks XFD, which comes with AMX. acpi: it stops Bochs.
_KERNEL = (
    "initrd=initrd console=ttyS0 quiet panic=-1 nokaslr norandmaps clearcpuid=amx_tile mitigations=off acpi=off pci=off"
    " nosmp lpj=1000000 cryptomgr.notests apparmor=0 audit=0 ima=off no_timer_check tsc=reliable"
)
_MACHINE = """
plugin_ctrl: unmapped=1, parallel=0, serial=1, gameport=0, speaker=0
display_library: rfb, options="timeout=0"
config_interface: textconfig
cpu: model=sapphire_rapids, ips=50000000, reset_on_triple_fault=0
memory: guest=1024, host=1024
romimage: file={bios}
vgaromimage: file={video}
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
log: bochs.log
panic: action=fatal
com1: enabled=1, mode=file, dev=serial.txt
port_e9_hack: enabled=1
clock: sync=none
"""


@dataclass(frozen=True)
class Ended:
    """A program that ran. status: as wait(2) tells it. result: what it wrote to /result."""

    status: int
    printed: bytes
    result: bytes


def missing() -> str | None:
    """What an emulated machine needs and this one lacks; None where all is there."""
    for program in ("bochs", "genisoimage"):
        if shutil.which(program) is None:
            return f"no {program} here: {INSTALL}"
    for path in (*_LOADERS, _BIOS, _VIDEO):
        if not Path(path).exists():
            return f"no {path} here: {INSTALL}"
    return None if _kernel() else f"no kernel with its headers here: {INSTALL}"


def _kernel() -> tuple[Path, Path] | None:
    """A kernel of this machine and the folder that its modules are built with."""
    for kernel in sorted(Path("/boot").glob("vmlinuz-*amd64"), reverse=True):
        headers = Path("/usr/src") / f"linux-headers-{kernel.name.removeprefix('vmlinuz-')}"
        if headers.exists():
            return kernel, headers
    return None


def run(commands: list[str], files: dict[str, Path], folder: Path, seconds: int) -> list[Ended]:
    """Run `commands` one after another on a machine that has `files`, by their paths in it, and the shared libraries
    that they need. Works in `folder`."""
    found = _kernel()
    assert found is not None
    kernel, headers = found
    subprocess.run(
        ["g++", "-std=c++20", "-O1", "-static", str(GUEST / "init.cpp"), "-o", str(folder / "init")], check=True
    )
    disc = folder / "disc"
    disc.mkdir()
    content = {path.lstrip("/"): file.read_bytes() for path, file in (files | _libraries(files)).items()}
    content |= {"init": (folder / "init").read_bytes(), "commands": "".join(f"{line}\n" for line in commands).encode()}
    content["tiles.ko"] = _module(headers, folder).read_bytes()
    (disc / "initrd").write_bytes(_archive(content))
    for path in _LOADERS:
        shutil.copy(path, disc)
    shutil.copy(kernel, disc / "kernel")
    (disc / "isolinux.cfg").write_text(f"DEFAULT run\nLABEL run\nKERNEL kernel\nAPPEND {_KERNEL}\n")
    boot = ["-b", "isolinux.bin", "-c", "boot.cat", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"]
    subprocess.run(["genisoimage", "-quiet", "-o", "boot.iso", *boot, "disc"], cwd=folder, check=True)
    (folder / "bochsrc").write_text(_MACHINE.format(bios=_BIOS, video=_VIDEO))
    command = ["bochs", "-q", "-f", "bochsrc"]
    told = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds).stdout
    return _ended(told, len(commands), folder)


def _ended(told: bytes, count: int, folder: Path) -> list[Ended]:
    _, begin, left = told.partition(b"begin\n")
    found = []
    while len(found) < count:
        line, end, left = left.partition(b"\n")
        if not begin or not end:
            logs = [folder / name for name in ("serial.txt", "bochs.log")]
            raise RuntimeError(
                f"the emulated machine stopped before command {len(found)}: {told[-300:]!r} "
                + " ".join(log.read_text(errors="replace")[-1500:] for log in logs if log.exists())
            )
        status, printed, result = map(int, line.split())
        found.append(Ended(status, left[:printed], left[printed : printed + result]))
        left = left[printed + result :]
    return found


def _module(headers: Path, folder: Path) -> Path:
    """tiles.ko for a kernel."""
    work = folder / "module"
    work.mkdir()
    shutil.copy(GUEST / "tiles.c", work)
    (work / "Makefile").write_text("obj-m := tiles.o\n")
    command = ["make", "-C", str(headers), f"M={work}", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return work / "tiles.ko"


def _libraries(files: dict[str, Path]) -> dict[str, Path]:
    """The shared libraries of programs, at the paths where they are looked for."""
    found = {}
    for file in files.values():
        if file.read_bytes()[:4] == b"\x7fELF":
            told = subprocess.run(["ldd", str(file)], capture_output=True, text=True).stdout
            found |= {path: Path(path) for path in re.findall(r"(/\S+) \(0x", told)}
    return found


def _archive(content: dict[str, bytes]) -> bytes:
    """Files by path in the form that Linux unpacks at start (cpio)."""
    folders = {str(parent) for path in content for parent in Path(path).parents if parent.name}
    entries = [(name, 0o40755, b"") for name in sorted(folders)]
    entries += [(name, 0o100755, data) for name, data in content.items()] + [("TRAILER!!!", 0, b"")]
    out = bytearray()
    for number, (name, mode, data) in enumerate(entries, 1):
        path = os.fsencode(name) + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        for part in (b"070701" + b"".join(b"%08x" % field for field in fields) + path, data):
            out += part + b"\0" * (-(len(out) + len(part)) % 4)
    return bytes(out)
