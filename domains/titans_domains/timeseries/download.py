"""The standard data sets: where they are, what they must be, and a download that can be taken up again.

Nothing of them is part of this package: the licence of ETT forbids to pass on changed copies, and for
the others none was found.
"""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/"
# At a fixed commit, since the archives of a branch may be replaced.
OTHERS = (
    "https://raw.githubusercontent.com/aspire-zero/long_term_forecast_data/"
    "0045b460bd65c402f91e738b4b5ac826433b00b0/"
)
PIECE = 2**16
LARGEST_ARCHIVE = 2**28
TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Source:
    """A CSV file: its address, or that of the zip that it is in."""

    url: str
    sha256: str
    size: int
    licence: str


NO_LICENCE = "none found"
SETS = {
    "ETTh1": Source(
        ETT + "ETTh1.csv",
        "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066", 2_589_657, "CC BY-ND 4.0",
    ),
    "ETTh2": Source(
        ETT + "ETTh2.csv",
        "a3dc2c597b9218c7ce1cd55eb77b283fd459a1d09d753063f944967dd6b9218b", 2_417_960, "CC BY-ND 4.0",
    ),
    "ETTm1": Source(
        ETT + "ETTm1.csv",
        "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e", 10_360_719, "CC BY-ND 4.0",
    ),
    "ETTm2": Source(
        ETT + "ETTm2.csv",
        "db973ca252c6410a30d0469b13d696cf919648d0f3fd588c60f03fdbdbadd1fd", 9_677_236, "CC BY-ND 4.0",
    ),
    "exchange_rate": Source(
        OTHERS + "exchange_rate.zip",
        "48b4d9d3d508f5104162e85b9a6042e3557fde11aa9f2944eba8c0d0efc89842", 637_800, NO_LICENCE,
    ),
    "national_illness": Source(
        OTHERS + "illness.zip",
        "93601f64d2566dc796ca4305adad8b8560c2db1a1ff04543c3bd813a7263570a", 67_620, NO_LICENCE,
    ),
    "weather": Source(
        OTHERS + "weather.zip",
        "34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63", 7_235_425, NO_LICENCE,
    ),
}  # fmt: skip


def fetch(
    name: str, folder: Path, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Path:
    """The file of a set in a folder: left as it is where it is there and right, else downloaded.

    A download that broke off goes on where it ended; a file of another content is never put in place.
    """
    if name not in SETS:
        raise ValueError(f"The data set must be one of {', '.join(SETS)}: got {name!r}.")
    source, target = SETS[name], folder / f"{name}.csv"
    if target.exists():
        check_content(target, source)
        return target
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{source.url.rsplit('/', 1)[1]}.part"
    download(source, draft, progress)
    if source.url.endswith(".zip"):
        packed, draft = draft, folder / f".{name}.csv.part"
        try:
            unpack(packed, f"{name}.csv", draft, source)
        finally:
            packed.unlink()
    try:
        check_content(draft, source)
    except ValueError:
        # Else the next call would go on with it.
        draft.unlink()
        raise
    os.replace(draft, target)
    return target


def check_content(path: Path, source: Source) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != source.sha256:
        raise ValueError(
            f"{path} is not the file of the benchmarks: its SHA-256 is {found}, that one's "
            f"{source.sha256}. Take it away and download again."
        )


def download(source: Source, draft: Path, progress: Callable[[int, int], None]) -> None:
    """Appends to `draft` what it lacks of the address."""
    most = LARGEST_ARCHIVE if source.url.endswith(".zip") else source.size
    begun = draft.stat().st_size if draft.exists() else 0
    if begun >= most:
        return
    request = urllib.request.Request(
        source.url, headers={"Range": f"bytes={begun}-"} if begun else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            # 206: the rest alone. Else all of it comes again.
            begun = begun if answer.status == 206 else 0
            length = answer.headers.get("Content-Length")
            total = begun + int(length) if length else source.size
            with draft.open("ab" if begun else "wb") as file:
                while piece := answer.read(PIECE):
                    begun += file.write(piece)
                    if begun > most:
                        raise ValueError(f"{source.url} is larger than the {most} bytes expected.")
                    progress(begun, total)
            if length and begun < total:
                raise ConnectionError(f"it ended after {begun} of {total} bytes")
    except urllib.error.HTTPError as error:
        if error.code == 416:
            # All of it is there already.
            return
        raise ConnectionError(f"{source.url} answers {error.code} {error.reason}.") from None
    except (
        urllib.error.URLError,
        ConnectionError,
        TimeoutError,
        http.client.HTTPException,
    ) as error:
        reason = getattr(error, "reason", None) or error
        raise ConnectionError(
            f"{source.url} could not be read ({reason}): call again where there is a network, and the "
            "download goes on where it ended; or give a file of your own with --data."
        ) from None


def unpack(packed: Path, name: str, draft: Path, source: Source) -> None:
    """The one file of an archive that has this name, if it has the size that it should have."""
    try:
        with zipfile.ZipFile(packed) as archive:
            members = [m for m in archive.infolist() if Path(m.filename).name == name]
            if len(members) != 1 or members[0].file_size != source.size:
                raise ValueError(
                    f"{source.url} must hold one {name} of {source.size} bytes: it holds "
                    f"{', '.join(m.filename for m in archive.infolist())[:200]}."
                )
            draft.write_bytes(archive.read(members[0]))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{source.url} is no zip file: {error}.") from None
