"""Files that are whole or not there: what a name shows is on the disk."""

import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file over what stands there, which stays until all of the new one is on the disk."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(draft, content)
        os.replace(draft, path)
    except OSError as error:
        # A full disk does not say of what file.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove_drafts(folder: Path) -> None:
    """Removes what a process that was killed had half written, or half removed, in its folder."""
    for path in list(folder.rglob("*.tmp")):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_synced(path: Path, content: str | bytes) -> None:
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk, on file systems that can."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock_file(path: Path, busy: str) -> TextIO:
    """A file that is ours alone until it is closed; ValueError with `busy` where another has it."""
    # Not on Windows, where all the rest of this can be imported.
    import fcntl

    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ValueError(busy) from None
    return file


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_tensors(
    tensors: Mapping[str, Tensor], path: Path, header: dict[str, str] | None = None
) -> None:
    """Writes a safetensors file to the disk, readable as other files are."""
    path.touch()
    mode = stat.S_IMODE(path.stat().st_mode)
    try:
        contiguous = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        save_file(contiguous, path, header)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}.") from None
    path.chmod(mode)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file; ValueError where it is cut short or something else."""
    shapes_in(path)
    return load_file(path)


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, without reading its numbers."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}; is this a run of titans?")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}
    except SafetensorError as error:
        raise ValueError(f"{path} is cut short or is no safetensors file: {error}.") from None
