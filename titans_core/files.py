"""Files that are whole or not there: what a name shows is on the disk."""

import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file over what stands there, which stays until all of the new one is on the disk."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_synced(draft, content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_synced(path: Path, content: str | bytes) -> None:
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Brings the names in a folder to the disk, on file systems that can."""
    descriptor = os.open(path, os.O_RDONLY)
    with suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


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
