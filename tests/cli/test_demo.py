"""`titans demo` on a folder that it cannot take."""

from pathlib import Path

from console import Titans


def test_a_folder_that_is_there_is_refused_before_anything_is_said(
    titans: Titans, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").touch()
    code, out, err = titans("demo", "--quick", "--out", str(tmp_path))
    assert (code, out) == (2, "")
    assert err == (
        f"error: {tmp_path} is there already: choose another --out or replace it with --force.\n"
    )
