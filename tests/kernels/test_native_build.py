"""Compiling on first use: kept once, wherever there is room, and honest where it cannot be done."""

import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from memory_problems import assert_same_bits, make_problem

from titans_kernels import available_backends
from titans_kernels.memory_update import native
from titans_kernels.memory_update.native import build

needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler was found")

SCRIPT = """
import sys
sys.path[:0] = {path!r}
import torch
from titans_kernels.memory_update.native import build
build.FLAGS = ("-O0", *build.FLAGS[1:])
assert build.library(torch.float64).forward
"""


@pytest.fixture(autouse=True)
def _forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test begins without a library, in a cache of its own; at -O0, which is quick."""
    caches = (build.library_or_why, build.missing, native.compiles)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "FLAGS", ("-O0", *build.FLAGS[1:]))
    for function in caches:
        function.cache_clear()
    yield
    for function in caches:
        function.cache_clear()


def kept(tmp_path: Path) -> list[str]:
    folder = tmp_path / "cache" / "titans-toolkit"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


@needs_compiler
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make_problem(time=5)
    problem.run("native")
    names = kept(tmp_path)
    assert len(names) == 1
    build.library_or_why.cache_clear()
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("compiled again"))
    problem.run("native")
    assert kept(tmp_path) == names


@needs_compiler
def test_another_source_processor_or_compiler_is_another_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {build.key(["-O3"]), build.key(["-O2"])}
    monkeypatch.setattr(build, "processor", lambda: "another")
    names.add(build.key(["-O3"]))
    source = tmp_path / "walk.c"
    source.write_text("int x;")
    monkeypatch.setattr(build, "sources", lambda: [source])
    names.add(build.key(["-O3"]))
    monkeypatch.setattr(build, "compiler", lambda: "another")
    names.add(build.key(["-O3"]))
    assert len(names) == 5


@needs_compiler
def test_a_broken_library_is_replaced(tmp_path: Path) -> None:
    path = build.cache() / f"walk-{build.key([*build.FLAGS, '-DDOUBLE'])}.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a library")
    assert build.library(torch.float64).forward
    assert kept(tmp_path) == [path.name]
    assert path.stat().st_size > 1000


@needs_compiler
def test_without_a_cache_it_is_compiled_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    problem = make_problem(time=5)
    assert torch.isfinite(problem.run("native")[0]).all()
    assert kept(tmp_path) == []


@needs_compiler
def test_a_cache_that_nothing_may_be_run_from_is_read_by_way_of_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: str) -> Any:
        if path.startswith(str(tmp_path / "cache")):
            raise OSError(f"{path}: failed to map segment from shared object")
        return library(path)

    library = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", load)
    problem = make_problem(time=5)
    wanted = problem.run("native")
    assert len(kept(tmp_path)) == 1
    # Another process.
    build.library_or_why.cache_clear()
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("compiled again"))
    assert_same_bits(problem.run("native"), wanted)


def nowhere_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> Any:
        raise OSError(f"{path}: failed to map segment from shared object")

    monkeypatch.setattr(ctypes, "CDLL", load)


def nowhere_to_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", os.devnull)


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def expanduser(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", expanduser)


@needs_compiler
@pytest.mark.parametrize("lack", [nowhere_to_run, nowhere_to_write, no_home])
def test_without_a_folder_auto_takes_another_and_the_name_is_refused(
    lack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack(monkeypatch)
    built = build.build
    calls = []
    monkeypatch.setattr(build, "build", lambda *given: calls.append(1) or built(*given))
    problem = make_problem(time=5)
    for _ in range(2):
        with pytest.raises(ValueError, match="could not be compiled and loaded: .*XDG_CACHE_HOME"):
            problem.run("native")
    with pytest.warns(UserWarning, match="XDG_CACHE_HOME.*'auto' takes 'chunked'"):
        y = problem.run("auto")
    assert_same_bits(y, problem.run("chunked"))
    # What has failed is not tried at every call.
    assert len(calls) <= 1


@needs_compiler
def test_two_processes_may_compile_at_once(tmp_path: Path) -> None:
    script = SCRIPT.format(path=sys.path)
    running = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    assert len(kept(tmp_path)) == 1


def test_without_a_compiler_auto_takes_another_and_the_name_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(build, "compiler", lambda: None)
    assert "no C compiler was found" in str(available_backends()["native"])
    problem = make_problem(time=5)
    with pytest.raises(ValueError, match="'native' cannot run here: no C compiler was found"):
        problem.run("native")
    assert_same_bits(problem.run("auto"), problem.run("chunked"))


@pytest.mark.parametrize("name", ["no-such-cc -m64", "'cc"])
def test_a_compiler_that_is_named_and_not_there_is_no_other(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", name)
    said = f"no C compiler was found as CC names it, {name!r}"
    assert available_backends()["native"] == said
    problem = make_problem(time=5)
    with pytest.raises(ValueError, match=f"'native' cannot run here: {said}"):
        problem.run("native")
    with pytest.warns(UserWarning, match=f"{said}.*'auto' takes 'chunked'"):
        y = problem.run("auto")
    assert_same_bits(y, problem.run("chunked"))


@needs_compiler
def test_a_compiler_may_be_named_with_words_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper, said = tmp_path / "my wrapper", tmp_path / "said"
    wrapper.write_text(f'#!/bin/sh\necho "$1" > "{said}"\nexec "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CC", f"'{wrapper}' {build.compiler()}")
    assert torch.isfinite(make_problem(time=5).run("native")[0]).all()
    assert said.read_text().startswith("/")


def test_a_compiler_that_fails_is_quoted_and_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fake-cc"
    fake.write_text("#!/bin/sh\necho 'walk.c: no such luck' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    problem = make_problem(time=5)
    with pytest.raises(
        ValueError, match="could not be compiled by .*fake-cc: walk.c: no such luck"
    ):
        problem.run("native")
    with pytest.warns(UserWarning, match="no such luck.*'auto' takes 'chunked'"):
        y = problem.run("auto")
    # A second warning would be an error.
    assert_same_bits(problem.run("auto"), y)
    assert_same_bits(y, problem.run("chunked"))
    assert kept(tmp_path) == []


def test_the_sources_are_shipped_with_the_package() -> None:
    names = {path.name for path in build.sources()}
    assert "walk.c" in names
    text = "".join(path.read_text() for path in build.sources())
    assert {name for name in names if name.endswith(".h")} == {
        line.split('"')[1] for line in text.splitlines() if line.startswith('#include "')
    }
