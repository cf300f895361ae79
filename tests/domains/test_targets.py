"""Files that must not or cannot be written are refused."""

from pathlib import Path

import pytest

from titans_domains import targets
from titans_domains.targets import check_plots, check_target


def test_targets_are_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(FileExistsError, match="x is there already: choose another --out"):
        check_target(tmp_path / "x", force=False)
    check_target(tmp_path / "x", force=True)
    check_target(tmp_path / "new", force=False)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_target(tmp_path, force=True)
    with pytest.raises(FileNotFoundError, match="no folder"):
        check_target(tmp_path / "no/x", force=False, option="--picture")


def test_a_picture_needs_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    check_plots("--picture")
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"--picture needs matplotlib: pip install 'titans-toolkit\["
    ):
        check_plots("--picture")
