"""Whether the built site keeps to itself: python docs/check_site.py SITE [--links]

Exits with 1 where a page, style or script would fetch anything from elsewhere. With `--links` it asks every
address that the pages link to whether it answers; that needs a network, and CI leaves it out.
"""

import argparse
import re
import sys
import urllib.request
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

ELSEWHERE = re.compile(r"^\s*(?:[a-z]+:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"(?:url\(|@import)\s*['\"]?\s*((?:[a-z]+:)?//[^'\")\s]+)", re.IGNORECASE)
FETCHES = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"),
    "video": ("src", "poster"), "audio": ("src",), "embed": ("src",), "object": ("data",),
    "link": ("href",), "use": ("href",), "image": ("href",),
}  # fmt: skip
NO_FETCH = {"canonical", "prev", "next", "alternate", "author", "license"}
"""Kinds of <link> that name a page and load nothing."""
ASKS = {"mermaid", "md-source__repository", "md-source"}
"""Classes at which the theme's script begins to fetch: drawings, and facts on a repository."""
TIMEOUT_S = 20


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: set[str] = set()
        self.styling = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.styling = tag == "style"
        if tag == "a" and ELSEWHERE.match(given.get("href", "")):
            self.links.add(given["href"])
        if not (tag == "link" and set(given.get("rel", "").split()) <= NO_FETCH):
            for name in FETCHES.get(tag, ()):
                if ELSEWHERE.match(given.get(name, "")):
                    self.fetched.append(given[name])
        self.fetched += IN_STYLE.findall(given.get("style", ""))
        self.fetched += [
            f"what class {name} asks for" for name in ASKS & set(given.get("class", "").split())
        ]

    def handle_data(self, data: str) -> None:
        if self.styling:
            self.fetched += IN_STYLE.findall(data)

    def handle_endtag(self, tag: str) -> None:
        self.styling = False


def fetched(site: Path) -> Iterator[tuple[Path, str]]:
    """What each file of the site would fetch from elsewhere."""
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            yield from ((path, address) for address in Page(path.read_text()).fetched)
        elif path.suffix == ".css":
            yield from ((path, address) for address in IN_STYLE.findall(path.read_text()))


def links(site: Path) -> list[str]:
    return sorted(set().union(*(Page(path.read_text()).links for path in site.rglob("*.html"))))


def dead(address: str) -> str | None:
    """Why a link leads nowhere; None where it answers."""
    request = urllib.request.Request(address, headers={"User-Agent": "Mozilla/5.0"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return None
    except (OSError, ValueError) as error:
        return str(error)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("site", type=Path)
    parser.add_argument("--links", action="store_true", help="ask the addresses of links, too")
    args = parser.parse_args()
    if not (args.site / "index.html").is_file():
        print(f"error: {args.site} is no built site: make it with mkdocs build.", file=sys.stderr)
        return 2
    found = [f"{path}: fetches {address}" for path, address in fetched(args.site)]
    if args.links:
        found += [f"{link}: {why}" for link in links(args.site) if (why := dead(link))]
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
