"""Compiles the C files beside this one for the processor that will run them, once.

The library is kept in the user's cache folder, under a name made of all that it depends on.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-w")
TARGETS = ("-march=native", "-mcpu=native", "")
"""How compilers are asked for the processor's own instructions; the first that is understood is taken."""


def compiler() -> str | None:
    """The path of the C compiler: the one that CC names, else the system's."""
    names = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in names if name and (found := shutil.which(name))), None)


@functools.cache
def missing() -> str | None:
    """Why nothing can be compiled here; None where a compiler is found."""
    if os.name != "posix":
        return f"it is written for POSIX systems: this is {platform.system()}"
    return None if compiler() else "no C compiler was found as cc, gcc or clang, or named by CC"


@functools.cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The functions for tensors of float32 or float64; raises ValueError where they cannot be made."""
    if why := missing():
        raise ValueError(f"backend 'native' cannot run here: {why}. Take 'auto' or 'chunked'.")
    flags = [*FLAGS, *(["-DDOUBLE"] if dtype == torch.float64 else [])]
    kept = cache() / f"walk-{key(flags)}.so"
    try:
        return ctypes.CDLL(str(kept))
    except OSError:
        pass  # not there, or not whole
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / kept.name
        build(flags, made)
        try:
            install(made, kept)
        except OSError:
            # What is loaded needs its file no longer.
            return ctypes.CDLL(str(made))
    return ctypes.CDLL(str(kept))


def cache() -> Path:
    """This project's folder among the user's caches."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "titans-toolkit"


def sources() -> list[Path]:
    return sorted(p for p in Path(__file__).parent.iterdir() if p.suffix in (".c", ".h"))


def key(flags: list[str]) -> str:
    """A name for what would be compiled: sources, compiler and processor."""
    digest = hashlib.sha256(repr((flags, TARGETS, compiler(), processor())).encode())
    for path in sources():
        digest.update(path.read_bytes())
    return digest.hexdigest()[:20]


def processor() -> str:
    """What tells one processor's instructions from another's, also where a home is shared by machines."""
    known = Path("/proc/cpuinfo")
    if not known.is_file():
        return f"{platform.machine()} {platform.processor()}"
    first = known.read_text().partition("\n\n")[0].splitlines()
    return "\n".join(line for line in first if line.startswith(("model name", "flags", "Features")))


def build(flags: list[str], out: Path) -> None:
    source = Path(__file__).with_name("walk.c")
    said = ""
    for target in TARGETS:
        asked = [*flags, target] if target else flags
        command = [str(compiler()), *asked, str(source), "-o", str(out)]
        done = subprocess.run([*command, "-lm"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return
        said = said or done.stderr.strip()
    last = " / ".join(said.splitlines()[-3:])
    raise ValueError(
        f"backend 'native' could not be compiled by {compiler()}: {last}. Name another compiler in "
        "CC, or take 'chunked'."
    )


def install(made: Path, kept: Path) -> None:
    """Puts the library in its place at once, whoever else does so at the same time."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as beside:
        copy = Path(beside) / kept.name
        shutil.copyfile(made, copy)
        copy.replace(kept)
