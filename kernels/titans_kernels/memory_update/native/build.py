"""Compiles the C files beside this one for the processor that will run them, once.

The library is kept in the user's cache folder, under a name made of all that it depends on.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread", "-w")
TARGETS = ("-march=native", "-mcpu=native", "")
"""How compilers are asked for the processor's own instructions; the first that is understood is taken."""


def compiler() -> str | None:
    """The command of the C compiler, with its path: the one that CC names, else the system's."""
    named = os.environ.get("CC", "").strip()
    try:
        commands = [shlex.split(named)] if named else [["cc"], ["gcc"], ["clang"]]
    except ValueError:
        return None  # quotes without an end
    for name, *flags in commands:
        if found := shutil.which(name):
            return shlex.join([found, *flags])
    return None


@functools.cache
def missing() -> str | None:
    """Why nothing can be compiled here; None where a compiler is found."""
    if os.name != "posix":
        return f"it is written for POSIX systems: this is {platform.system()}"
    if compiler():
        return None
    named = os.environ.get("CC")
    asked = f"as CC names it, {named!r}" if named else "as cc, gcc or clang, or named by CC"
    return f"no C compiler was found {asked}"


def library(dtype: torch.dtype) -> ctypes.CDLL:
    """The functions for tensors of float32 or float64; raises ValueError where they cannot be made."""
    found = library_or_why(dtype)
    if isinstance(found, str):
        raise ValueError(found)
    return found


@functools.cache
def library_or_why(dtype: torch.dtype) -> ctypes.CDLL | str:
    """The library, or why there is none: what has failed once is not tried again."""
    if why := missing():
        return f"backend 'native' cannot run here: {why}. Take 'auto' or 'chunked'."
    flags = [*FLAGS, *(["-DDOUBLE"] if dtype == torch.float64 else [])]
    try:
        return loaded(flags, cache() / f"walk-{key(flags)}.so")
    except (OSError, RuntimeError) as error:
        why = str(error).rstrip(".")
        return (
            f"backend 'native' could not be compiled and loaded: {why}. Set XDG_CACHE_HOME and TMPDIR to "
            "folders that can be written to and run from, or take 'chunked'."
        )
    except ValueError as error:
        return str(error)


def loaded(flags: list[str], kept: Path) -> ctypes.CDLL:
    """From where it is kept, or else made anew and kept there if that can be."""
    if library := attempt(kept):
        return library
    # What is loaded needs its file no longer.
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / kept.name
        if kept.is_file():
            # Where it is kept, it may be that nothing may be run.
            shutil.copyfile(kept, made)
            if library := attempt(made):
                return library
        build(flags, made)
        with contextlib.suppress(OSError):
            install(made, kept)
        return ctypes.CDLL(str(made))


def attempt(path: Path) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(path))
    except OSError:
        return None  # not there, not whole, or not to be run


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
        command = [*shlex.split(str(compiler())), *asked, str(source), "-o", str(out)]
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
