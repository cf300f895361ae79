"""The site: its drawings can be drawn, its reference is whole, and its check finds what fetches."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pages import DOCS, PAGES, ROOT

import titans_core
import titans_domains.dna
import titans_domains.language
import titans_domains.timeseries
import titans_kernels

DRAWINGS = [path.stem for path in (DOCS / "drawings").glob("*.py") if path.stem != "canvas"]


def module(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_drawing_is_that_of_its_script(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(DOCS / "drawings", name, monkeypatch).draw(tmp_path)
    made, kept = ((folder / f"{name}.svg").read_text() for folder in (tmp_path, DOCS / "drawings"))
    # matplotlib writes every text as a comment; curves differ in the last digits between machines.
    said = [re.findall(r"<!-- (.*?) -->", svg) for svg in (made, kept)]
    assert said[0] == said[1]
    assert said[0]
    assert made.count("<path") == kept.count("<path")


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module(DOCS, "check_site", monkeypatch)


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<link rel="preconnect" href="https://fonts.example">',
        '<img alt="" src="http://example.com/a.png">',
        '<div style="background: url(https://example.com/a.png)">',
        "<style>@import 'https://example.com/a.css';</style>",
        '<pre class="mermaid">graph</pre>',
    ],
)
def test_what_would_fetch_is_found(check: ModuleType, tmp_path: Path, html: str) -> None:
    (tmp_path / "index.html").write_text(f"<html><body>{html}</body></html>")
    assert len(list(check.fetched(tmp_path))) == 1


def test_links_and_what_is_here_fetch_nothing(check: ModuleType, tmp_path: Path) -> None:
    page = '<link rel="canonical" href="https://a.example"><a href="https://b.example">b</a>'
    (tmp_path / "index.html").write_text(f'{page}<img src="a.png"><script src="a.js"></script>')
    (tmp_path / "a.css").write_text("a { background: url(a.png) }")
    assert list(check.fetched(tmp_path)) == []
    assert check.links(tmp_path) == ["https://b.example"]
    (tmp_path / "a.css").write_text("a { background: url('https://c.example/a.png') }")
    assert [address for _, address in check.fetched(tmp_path)] == ["https://c.example/a.png"]


def test_the_reference_has_every_command(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = module(DOCS, "commands", monkeypatch)
    page = commands.on_page_markdown((DOCS / "reference/cli.md").read_text())
    for command in ("titans", "titans language train", "titans dna saturate", "titans serve"):
        assert f"\n## {command}\n" in page
    assert "| `--mixer NAME` |" in page
    assert "Example: `titans language train --data book.txt --out runs/book`" in page
    headings = re.findall(r"^## (.*)$", page, re.MULTILINE)
    assert len(headings) == len(set(headings)) > 20


def test_formulas_become_html_outside_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    formulas = module(DOCS, "formulas", monkeypatch)
    page = "costs $5, `$x$`, $x_{t-1} \\odot \\mathrm{f}(x)$ and $M L$\n```sh\necho $a $b\n```\n"
    assert formulas.on_page_markdown(page) == (
        'costs $5, `$x$`, <span class="formula">x<sub>t-1</sub> ⊙ <span>f</span>(x)</span> and '
        '<span class="formula">M L</span>\n```sh\necho $a $b\n```\n'
    )
    with pytest.raises(ValueError, match="no .nabla"):
        formulas.on_page_markdown("$\\nabla x$")


def test_every_page_is_in_the_navigation() -> None:
    class Loader(yaml.SafeLoader):
        pass

    def pages_of(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        parts = node.values() if isinstance(node, dict) else node
        return [page for part in parts for page in pages_of(part)]  # type: ignore[attr-defined]

    nav = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]
    assert sorted(pages_of(nav)) == PAGES


PACKAGES = {
    "kernels": titans_kernels,
    "core": titans_core,
    "language": titans_domains.language,
    "timeseries": titans_domains.timeseries,
    "dna": titans_domains.dna,
}


def test_the_built_reference_has_every_public_name(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="the extra docs is not installed; .ci/run builds the site")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    pytest.importorskip("mkdocstrings")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    for page, package in PACKAGES.items():
        html = (tmp_path / f"reference/{page}.html").read_text()
        # What bears the name of its module, or is imported late, is there by the path of its own.
        anchors = re.findall(rf'id="{package.__name__}\.([^"]+)"', html)
        assert set(package.__all__) <= {anchor.rpartition(".")[2] for anchor in anchors}
