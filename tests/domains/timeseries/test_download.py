"""Downloads are checked, go on where they ended, and say plainly that there is no network."""

import hashlib
import io
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from titans_domains.timeseries import download
from titans_domains.timeseries.download import SETS, Source, fetch

CONTENT = b"date,x\n" + b"2024-01-01 00:00:00,1.5\n" * 9000


def packed(name: str = "deep/weather.csv", content: bytes = CONTENT) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
        archive.writestr("deep/readme.txt", "x")
    return file.getvalue()


class Server(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012
    asked: list[tuple[str, str | None]] = []  # noqa: RUF012
    ends_after: int | None = None
    knows_ranges = True

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append((self.path, wanted))
        if self.path not in self.files:
            self.send_error(404)
            return
        content = self.files[self.path]
        first = (
            int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.knows_ranges else 0
        )
        if first >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        end = len(content) if self.ends_after is None else first + self.ends_after
        self.wfile.write(content[first:end])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Server]]:
    kind: type[Server] = type("Kind", (Server,), {"files": {}, "asked": []})
    kind.files = {"/ETTh1.csv": CONTENT, "/weather.zip": packed()}
    http = HTTPServer(("127.0.0.1", 0), kind)
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    base = f"http://127.0.0.1:{http.server_port}/"
    right = hashlib.sha256(CONTENT).hexdigest()
    for name, file in (("ETTh1", "ETTh1.csv"), ("weather", "weather.zip")):
        monkeypatch.setitem(SETS, name, Source(base + file, right, len(CONTENT), "none"))
    yield kind
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["ETTh1", "weather"])
def test_a_set_is_fetched_once(name: str, server: type[Server], tmp_path: Path) -> None:
    seen = []
    path = fetch(name, tmp_path / "new", progress=lambda done, total: seen.append((done, total)))
    assert (path.name, path.read_bytes()) == (f"{name}.csv", CONTENT)
    assert seen[-1][0] == seen[-1][1]
    assert list(path.parent.iterdir()) == [path]
    assert fetch(name, tmp_path / "new") == path
    assert len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_ended(
    ranges: bool, server: type[Server], tmp_path: Path
) -> None:
    server.ends_after, server.knows_ranges = 100_000, ranges
    with pytest.raises(ConnectionError, match="the download goes on where it ended"):
        fetch("ETTh1", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".ETTh1.csv.part"]
    begun = (tmp_path / ".ETTh1.csv.part").stat().st_size
    assert 0 < begun < len(CONTENT)
    server.ends_after = None
    assert fetch("ETTh1", tmp_path).read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, f"bytes={begun}-"]


@pytest.mark.parametrize("name", ["ETTh1", "weather"])
def test_another_content_is_never_put_in_place(
    name: str, server: type[Server], tmp_path: Path
) -> None:
    other = CONTENT[:-2] + b"7\n"
    server.files = {"/ETTh1.csv": other, "/weather.zip": packed(content=other)}
    with pytest.raises(ValueError, match="is not the file of the benchmarks"):
        fetch(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_content_is_left_and_said(server: type[Server], tmp_path: Path) -> None:
    (tmp_path / "ETTh1.csv").write_text("mine")
    with pytest.raises(ValueError, match=r"ETTh1\.csv is not the file of the benchmarks"):
        fetch("ETTh1", tmp_path)
    assert (tmp_path / "ETTh1.csv").read_text() == "mine"
    assert server.asked == []


WRONG = {
    "no zip": (b"x" * 500, "is no zip file"),
    "no member": (packed("other.csv"), r"must hold one weather\.csv"),
    "a bomb": (packed(content=CONTENT * 9), r"must hold one weather\.csv of"),
}


@pytest.mark.parametrize(("content", "sentence"), WRONG.values(), ids=WRONG)
def test_archives_of_something_else_are_refused(
    content: bytes, sentence: str, server: type[Server], tmp_path: Path
) -> None:
    server.files["/weather.zip"] = content
    with pytest.raises(ValueError, match=sentence):
        fetch("weather", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_too_large_is_cut_off(server: type[Server], tmp_path: Path) -> None:
    server.files["/ETTh1.csv"] = CONTENT + b"x" * 200_000
    with pytest.raises(ValueError, match="is larger than the"):
        fetch("ETTh1", tmp_path)


def test_no_network_is_said_plainly(
    server: type[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SETS, "ETTm1", Source("http://127.0.0.1:9/ETTm1.csv", "0", 10, "none"))
    with pytest.raises(
        ConnectionError, match="could not be read .* call again where there is a net"
    ):
        fetch("ETTm1", tmp_path)
    monkeypatch.setitem(SETS, "ETTm2", Source(SETS["ETTh1"].url + "x", "0", 10, "none"))
    with pytest.raises(ConnectionError, match="answers 404"):
        fetch("ETTm2", tmp_path)
    with pytest.raises(ValueError, match="must be one of ETTh1, ETTh2"):
        fetch("ECL", tmp_path)
    assert download.TIMEOUT_S <= 60
