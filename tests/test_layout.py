"""The layout of the repository: unique package names, nothing of one machine, and a README that runs."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# In pieces, so that this file does not hold what it looks for.
PLACES = [f"/{top}/" for top in ("work", "home", "opt", "root", "mnt", "Users")]
HOSTS = [
    "pypi" + ".org",
    "python" + "hosted.org",
    "arti" + "factory",
    "ne" + "xus",
]
URL = re.compile(r"https?://[^\s)>\"'`]*")


def tracked() -> list[Path]:
    """The files that git knows or would take."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, capture_output=True, check=False,
    )  # fmt: skip
    if listing.returncode:
        pytest.skip("not a checkout")
    names = listing.stdout.decode().split("\0")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def found(text: str) -> list[str]:
    """Paths of a machine, which are none inside an address, and names of package indices."""
    bare = URL.sub("", text)
    return [part for part in PLACES if re.search(rf"(?<![\w.~-]){part}", bare)] + [
        host for host in HOSTS if host in text
    ]


@pytest.mark.parametrize("folder", ["kernels", "domains", "cli"])
def test_the_folders_of_packages_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()
    inside = [p.name for p in (ROOT / folder).iterdir() if (p / "__init__.py").is_file()]
    assert inside == [f"titans_{folder}"]
    assert (ROOT / folder / "README.md").is_file()


def test_tests_are_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_no_file_holds_a_path_or_an_index_of_one_machine() -> None:
    files = tracked()
    assert ROOT / "pyproject.toml" in files
    held = {}
    for path in files:
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if parts := found(text):
            held[str(path.relative_to(ROOT))] = parts
    assert held == {}


def test_the_search_finds_what_it_should_and_nothing_else() -> None:
    for place in PLACES:
        assert found(f"see {place}main/x.py") == [place]
        assert found(f'"{place}x"') == [place]
        assert found(f"docs{place}x and https://example.com{place}x") == []
    assert found(f"https://{HOSTS[0]}/simple") == [HOSTS[0]]
    assert found("no paths, and/or words/work/none") == []


def test_the_readme_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().err == ""
