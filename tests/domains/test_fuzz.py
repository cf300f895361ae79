"""Whatever stands in a file, its reader gives what is in it or says in a sentence what is wrong.

`TITANS_FUZZ=10000` in the environment tries so many inputs with each reader, and `-s` shows what came out.
"""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from fuzz_readers import READERS, Reader
from fuzzing import BROKEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_language import CPU

from titans_domains.runs import peak_memory_mib

INPUTS = int(os.environ.get("TITANS_FUZZ", "40"))
MOST_GROWTH, MOST_AT_ONCE = 64, 256
"""MiB that the process may have grown by after all inputs of a reader, and at any moment between."""


def put(path: Path, content: bytes) -> None:
    # What is written over a file is brought to the disk at once by some file systems, which takes long.
    path.unlink()
    path.write_bytes(content)


def resident() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def outcome(read: Callable[[Path], object], folder: Path) -> str:
    """`read`, or the documented kind of the error."""
    try:
        read(folder)
    except (ValueError, TypeError, OSError, MemoryError) as error:
        # Other words are Python's or a library's, and do not say what to do.
        ours = str(error).endswith((".", "?")) and not isinstance(error, UnicodeError)
        if ours or isinstance(error, OSError):
            return type(error).__name__
        raise AssertionError("no sentence") from error
    return "read"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_reads_or_says_what_is_wrong(name: str, tmp_path: Path) -> None:
    reader: Reader = READERS[name](tmp_path)
    assert outcome(reader.read, tmp_path) == "read"
    found: Counter[str] = Counter()

    @settings(max_examples=INPUTS, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 2**64 - 1))
    def try_one(seed: int) -> None:
        chance = Random(seed)
        name = chance.choice(list(reader.files))
        path = tmp_path / name
        content = path.read_bytes()
        changed = content
        for _ in range(chance.choice((1, 1, 1, 2))):
            try:
                changed = chance.choice(reader.files[name])(changed, chance)
            except BROKEN:
                break
        put(path, changed)
        try:
            reader.renew(tmp_path)
            found[outcome(reader.read, tmp_path)] += 1
        finally:
            put(path, content)
            reader.renew(tmp_path)

    before, peak, began = resident(), peak_memory_mib(CPU), time.perf_counter()
    try_one()
    grown, most = resident() - before, peak_memory_mib(CPU) - peak
    print(
        f"\n{name}: {dict(found)}, {time.perf_counter() - began:.0f} s, {grown:.0f} MiB more, at most "
        f"{most:.0f} MiB"
    )
    assert grown < MOST_GROWTH
    assert most < MOST_AT_ONCE
    assert outcome(reader.read, tmp_path) == "read"
