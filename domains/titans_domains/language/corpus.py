"""Documents from files, folders, hub data sets and Python's own documentation."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from titans_domains.hub import HUB, hub_parts, hub_rows

EMBEDDED = "embedded"
READERS = (".txt", ".md", ".rst", ".jsonl", ".parquet")


def documents(source: str) -> Iterator[bytes]:
    """The documents of `source` as UTF-8: `embedded`, a file, a folder, or one of `hub_parts`.

    A text file is one document, a line of .jsonl and a row of .parquet are one each (their `text`),
    and blank ones are left out.
    """
    if source == EMBEDDED:
        from pydoc_data.topics import topics

        yield from (topics[name].encode() for name in sorted(topics))
    elif source.startswith(HUB):
        yield from filled(hub_documents(source), source)
    elif not source:
        # As a path it would be the working folder.
        raise ValueError("data is an empty name: give a path, 'embedded' or 'hf:NAME'.")
    else:
        yield from path_documents(Path(source))


def path_documents(path: Path) -> Iterator[bytes]:
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file or folder {str(path)!r}; data may be a path, 'embedded' or 'hf:NAME'."
        )
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix in READERS and p.is_file())
        if not files:
            raise ValueError(f"{path} holds no {', '.join(READERS)} file.")
        for file in files:
            yield from path_documents(file)
    elif path.suffix == ".jsonl":
        yield from filled(json_documents(path), str(path))
    elif path.suffix == ".parquet":
        yield from filled(parquet_documents(path), str(path))
    else:
        yield checked(path.read_bytes(), str(path))


def filled(texts: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The texts that are not blank; ValueError where none is left."""
    count = 0
    for text in texts:
        if text.strip():
            count += 1
            yield text
    if not count:
        raise ValueError(f"{name} is empty: none of its rows holds a text.")


def checked(text: bytes, name: str) -> bytes:
    """The text if it is some; ValueError for empty and binary ones."""
    if not text.strip():
        raise ValueError(f"{name} is empty: give a text with at least one sequence in it.")
    return decodable(text, name)


def decodable(text: bytes, name: str) -> bytes:
    """The text if it is none or some; ValueError for binary ones."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} must be UTF-8 text: byte {error.start} is not.") from None
    if b"\0" in text:
        raise ValueError(f"{name} must be text: byte {text.index(0)} is 0, so it looks binary.")
    return text


def json_documents(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            name = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name} is not JSON: {error}.") from None
            if not isinstance(row, dict) or not isinstance(row.get("text", 0), str | None):
                raise ValueError(f"{name} must be an object with a string 'text'.")
            # JSON can escape half a letter, which no text may hold.
            yield decodable((row["text"] or "").encode(errors="surrogatepass"), name)


def parquet_documents(path: Path) -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a Parquet file: {error}.") from None
    if "text" not in names:
        raise ValueError(f"{path} must have a column 'text': it has {names}.")
    for row, value in enumerate(_texts(table, path)):
        name = f"{path}, row {row}"
        if not isinstance(value, str | None):
            raise ValueError(f"{name} must be a string: got {type(value).__name__}.")
        yield decodable((value or "").encode(), name)


def _texts(table: Any, path: Path) -> Iterator[Any]:
    """The values of a Parquet file's `text`; ValueError where its inside is damaged."""
    import pyarrow

    try:
        for batch in table.iter_batches(columns=["text"]):
            yield from batch.column(0).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}.") from None


def hub_documents(source: str, skip: int = 0) -> Iterator[bytes]:
    """Streams a Hugging Face data set, from row `skip` on; a blank row is an empty document.

    Of a name without a split it is `train`.
    """
    name, _, split = hub_parts(source)
    number = skip
    for row in hub_rows(source, split or "train", skip):
        text = row.get("text", 0)
        if not isinstance(text, str | None):
            raise ValueError(
                f"{name} must have a column 'text' of strings: row {number} has {sorted(row)}."
            )
        yield text.encode() if text and text.strip() else b""
        number += 1
    if not number:
        raise ValueError(f"The data set {source!r} is empty: it has no row.")


def first_documents(source: str, count: int) -> list[bytes]:
    """The documents that hold the first `count` bytes of a data set; the last may be cut."""
    texts, size = [], 0
    for text in documents(source):
        texts.append(text)
        size += len(text)
        if size >= count:
            break
    return first_bytes(texts, count)


def fingerprint(texts: list[bytes]) -> str:
    """SHA-256 over the documents and their lengths."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()


def split_documents(texts: list[bytes], held_out: float) -> tuple[list[bytes], list[bytes]]:
    """The documents before and after the cut that leaves the last `held_out` of all bytes."""
    cut = int((1 - held_out) * sum(map(len, texts)))
    first, second = [], []
    for text in texts:
        # A cut inside a letter would leave bytes that are no text.
        at = max(cut, 0)
        while 0 < at < len(text) and text[at] & 0xC0 == 0x80:
            at -= 1
        if text[:at]:
            first.append(text[:at])
        if text[at:]:
            second.append(text[at:])
        cut -= len(text)
    return first, second


def first_bytes(texts: list[bytes], count: int) -> list[bytes]:
    """The documents that hold the first `count` bytes, the last of them cut there."""
    chosen = []
    for text in texts:
        if count <= 0:
            break
        chosen.append(text[:count].decode(errors="ignore").encode())
        count -= len(text)
    return [text for text in chosen if text]
