"""Corpora: every format read, everything that is no text named, and cuts that leave letters whole."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st
from tiny_language import DOCUMENTS, write_documents

from titans_domains.hub import hub_parts
from titans_domains.language.corpus import (
    documents,
    fingerprint,
    first_bytes,
    first_documents,
    hub_documents,
    split_documents,
)

TEXTS = [text.encode() for text in DOCUMENTS]


def write_parquet(path: Path, **columns: Any) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def read(path: Path) -> list[bytes]:
    return list(documents(str(path)))


@pytest.mark.parametrize("suffix", ["txt", "md", "rst", "csv", ""])
def test_a_text_file_is_one_document_as_it_stands(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text.{suffix}"
    content = b"\r\n".join(TEXTS)
    path.write_bytes(content)
    assert read(path) == [content]


def test_a_line_of_json_and_a_row_of_parquet_are_a_document(tmp_path: Path) -> None:
    path = write_documents(tmp_path / "text.jsonl")
    assert read(path) == TEXTS
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\n  \n"))
    assert read(path) == TEXTS
    assert read(write_parquet(tmp_path / "t.parquet", id=range(6), text=DOCUMENTS)) == TEXTS


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/one.md").write_text("one")
    (tmp_path / "a.txt").write_text("two")
    write_documents(tmp_path / "c.jsonl", ["three", "four"])
    write_parquet(tmp_path / "d.parquet", text=["five"])
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "named.txt").mkdir()
    assert read(tmp_path) == [b"two", b"one", b"three", b"four", b"five"]


def test_the_embedded_text_is_there_and_is_text() -> None:
    texts = list(documents("embedded"))
    assert sum(map(len, texts)) > 300_000
    assert all(text.decode().strip() for text in texts)
    assert texts == list(documents("embedded"))


BAD = {
    "empty": ("t.txt", b"", "is empty"),
    "blank": ("t.txt", b" \n\r\n\t", "is empty"),
    "binary": ("t.txt", b"MZ\0\1", "must be text: byte 2 is 0, so it looks binary"),
    "latin 1": ("t.txt", "Größe".encode("latin-1"), "must be UTF-8 text: byte 2 is not"),
    "picture": ("t.png", b"\x89PNG\r\n", "must be UTF-8 text: byte 0 is not"),
    "utf-16": ("t.md", "text".encode("utf-16"), "must be UTF-8 text: byte 0 is not"),
    "no JSON": ("t.jsonl", b'{"text": "a"}\n\n{"text": \n', "line 3 is not JSON"),
    "JSON cut in a letter": ("t.jsonl", b'{"text": "\xc3"}', "line 1 is not JSON"),
    "JSON list": ("t.jsonl", b'{"text": "a"}\n["a"]\n', "line 2 must be an object with a string"),
    "JSON number": ("t.jsonl", b'{"text": 3}', "line 1 must be an object with a string 'text'"),
    "JSON without text": ("t.jsonl", b'{"body": "a"}', "line 1 must be an object with a string"),
    "JSON blank texts": (
        "t.jsonl",
        b'{"text": ""}\n{"text": " "}',
        "none of its rows holds a text",
    ),
    "JSON zero": ("t.jsonl", b'{"text": "a\\u0000"}', "line 1 must be text: byte 1 is 0"),
    "JSON half a letter": ("t.jsonl", b'{"text": "\\ud83d"}', "line 1 must be UTF-8 text"),
    "JSON empty": ("t.jsonl", b"\n\n", "is empty: none of its rows holds a text"),
    "no Parquet": ("t.parquet", b"PAR1 and no more", "is not a Parquet file"),
}


@pytest.mark.parametrize(("name", "content", "sentence"), BAD.values(), ids=BAD)
def test_what_is_no_text_is_named(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    sources = [path] if name.endswith("png") else [path, tmp_path]
    for source in sources:
        with pytest.raises(ValueError, match=sentence) as caught:
            read(source)
        assert type(caught.value) is ValueError
        assert str(caught.value).startswith(str(path))


def test_parquet_must_have_a_column_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for columns, sentence in (
        ({"body": ["a"]}, r"must have a column 'text': it has \['body'\]"),
        ({"text": [1, 2]}, "row 0 must be a string: got int"),
        ({"text": pyarrow.array([], pyarrow.string())}, "is empty: none of its rows holds"),
        ({"text": ["", None, " "]}, "is empty: none of its rows holds a text"),
        ({"text": ["a", "b", "c\0"]}, "row 2 must be text"),
    ):
        write_parquet(path, **columns)
        with pytest.raises(ValueError, match=sentence):
            read(path)
    write_parquet(path, text=pyarrow.array(["a", "b"], pyarrow.large_string()))
    assert read(path) == [b"a", b"b"]


def test_blank_rows_are_left_out(tmp_path: Path) -> None:
    lines = b'{"text": " "}\n{"text": "a"}\n{"text": null}\n{"text": "\\n"}\n{"text": "b"}'
    (tmp_path / "t.jsonl").write_bytes(lines)
    assert read(tmp_path / "t.jsonl") == [b"a", b"b"]
    path = write_parquet(tmp_path / "t.parquet", text=["", "a", None, " \n", "b"])
    assert read(path) == [b"a", b"b"]


def test_a_path_that_is_not_there_and_a_folder_without_texts_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file or folder .*missing"):
        read(tmp_path / "missing.txt")
    with pytest.raises(FileNotFoundError, match="data may be a path, 'embedded' or 'hf:NAME'"):
        list(documents("embeded"))
    with pytest.raises(ValueError, match="data is an empty name"):
        list(documents(""))
    (tmp_path / "text.doc").write_text("a")
    with pytest.raises(ValueError, match=r"holds no \.txt, \.md, \.rst, \.jsonl, \.parquet file"):
        read(tmp_path)


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """A data set on a hub that can be reached; the test fills it."""
    content: list[dict[str, Any]] = []

    class Streamed:
        def __init__(self, skipped: int = 0) -> None:
            self.skipped = skipped

        def skip(self, count: int) -> "Streamed":
            return Streamed(count)

        def __iter__(self) -> Iterator[dict[str, Any]]:
            for row in content[self.skipped :]:
                if "raised" in row:
                    raise row["raised"]
                yield row

    def load_dataset(name: str, config: str | None, split: str, streaming: bool) -> Streamed:
        assert streaming
        if (name, split) != ("some/set", "train") or config not in (None, "en"):
            raise RuntimeError(f"no {name} with {config} and {split}\nand a second line")
        return Streamed()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [])
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return content


def test_a_data_set_is_read_from_a_row_on(rows: list[dict[str, Any]]) -> None:
    rows += [{"text": "one"}, {"text": " \n"}, {"text": "größer"}]
    assert list(hub_documents("hf:some/set")) == [b"one", b"", "größer".encode()]
    assert list(hub_documents("hf:some/set:train", skip=2)) == ["größer".encode()]
    assert list(documents("hf:some/set")) == [b"one", "größer".encode()]


def test_a_data_set_without_text_is_named(rows: list[dict[str, Any]]) -> None:
    rows += [{"text": "one"}, {"text": None}, {"body": "two", "id": 2}]
    with pytest.raises(ValueError, match=r"column 'text' of strings: row 2 has \['body', 'id'\]"):
        list(hub_documents("hf:some/set"))


@pytest.mark.usefixtures("rows")
def test_a_data_set_that_cannot_be_opened_is_a_connection_error_of_one_line() -> None:
    with pytest.raises(ConnectionError) as caught:
        list(documents("hf:some/set:test"))
    assert str(caught.value) == (
        "The data set 'some/set' could not be opened: no some/set with None and test. Check the name and the "
        "network, or give a file."
    )


def test_a_configuration_stands_before_the_split(rows: list[dict[str, Any]]) -> None:
    rows.append({"text": "one"})
    assert list(hub_documents("hf:some/set:en:train")) == [b"one"]
    with pytest.raises(ConnectionError, match="no some/set with de and train"):
        list(hub_documents("hf:some/set:de:train"))
    assert hub_parts("hf:a/b") == ("a/b", None, None)
    assert hub_parts("hf:a/b:test") == ("a/b", None, "test")
    assert hub_parts("hf:a/b:c:test") == ("a/b", "c", "test")


@pytest.mark.parametrize("source", ["hf:", "hf::train", "hf:a:", "hf:a::train", "hf:a:b:c:d"])
def test_a_data_set_without_a_name_is_refused(source: str) -> None:
    sentence = "A data set must be hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT: got '{}'."
    with pytest.raises(ValueError, match=sentence.format(source)):
        list(documents(source))


@pytest.mark.parametrize("error", [OSError("cut off\nand so on"), RuntimeError(), KeyError("a")])
def test_a_hub_that_fails_while_it_is_read_costs_a_sentence(
    rows: list[dict[str, Any]], error: Exception
) -> None:
    rows += [{"text": "one"}, {"text": "two"}, {"raised": error}]
    read = hub_documents("hf:some/set", skip=1)
    assert next(read) == b"two"
    with pytest.raises(ConnectionError, match="'some/set' could not be read on at row 2") as caught:
        next(read)
    assert "\n" not in str(caught.value)
    # The first row is fetched as the data set is opened.
    with pytest.raises(ConnectionError, match="'some/set' could not be opened"):
        next(hub_documents("hf:some/set", skip=2))


def test_an_empty_data_set_costs_a_sentence(rows: list[dict[str, Any]]) -> None:
    with pytest.raises(ValueError, match="The data set 'hf:some/set' is empty: it has no row"):
        next(hub_documents("hf:some/set"))
    rows.append({"text": " "})
    with pytest.raises(ValueError, match="hf:some/set is empty: none of its rows holds a text"):
        list(documents("hf:some/set"))
    assert list(hub_documents("hf:some/set", skip=1)) == []


def test_the_first_bytes_of_a_data_set_are_all_that_is_read(rows: list[dict[str, Any]]) -> None:
    rows += [{"text": "one"}, {"text": ""}, {"text": "two"}, {"raised": OSError("too far")}]
    assert first_documents("hf:some/set", 5) == [b"one", b"tw"]


def test_through_a_proxy_no_name_is_looked_up(
    rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any) -> None:
        raise socket.gaierror("no network")

    rows.append({"text": "one"})
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("https_proxy", "http://proxy.invalid:3128")
    assert list(hub_documents("hf:some/set")) == [b"one"]
    assert not constants.HF_HUB_OFFLINE


def test_without_a_network_the_hub_is_not_waited_for(
    rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any) -> None:
        raise socket.gaierror("no network")

    rows += [{"text": "kept from before"}]
    monkeypatch.setattr(socket, "getaddrinfo", offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert list(hub_documents("hf:some/set")) == [b"kept from before"]
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.HF_HUB_OFFLINE


def test_without_a_network_the_real_hub_client_gives_a_connection_error(tmp_path: Path) -> None:
    code = (
        "from titans_domains.language.corpus import documents\n"
        "try: next(documents('hf:nobody/nothing'))\n"
        "except ConnectionError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            "HF_ENDPOINT": "https://hub.invalid",
            "HF_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "The data set 'nobody/nothing' could not be opened" in done.stdout
    assert done.stderr == ""


@given(st.lists(st.text(min_size=1), min_size=1), st.floats(0, 1, exclude_max=True))
def test_a_split_loses_nothing_and_cuts_no_letter(texts: list[str], share: float) -> None:
    encoded = [text.encode(errors="ignore") or b"x" for text in texts]
    first, second = split_documents(encoded, share)
    assert b"".join(first + second) == b"".join(encoded)
    assert all(text and text.decode() for text in first + second)
    cut = int((1 - share) * sum(map(len, encoded)))
    assert cut - 3 <= sum(map(len, first)) <= cut
    # At most one document is in two.
    assert len(first) + len(second) <= len(encoded) + 1


def test_a_split_inside_a_letter_goes_before_it() -> None:
    text = "a日b".encode()
    for cut, first in ((0, b""), (1, b"a"), (2, b"a"), (3, b"a"), (4, "a日".encode())):
        parts = split_documents([text], 1 - (cut + 0.1) / len(text))
        assert parts == ([first] if first else [], [text.removeprefix(first)])
    assert split_documents([text, b"next"], 0) == ([text, b"next"], [])


def test_the_first_bytes_are_whole_letters_and_no_more_than_asked_for() -> None:
    texts = [b"one", "日本".encode(), b"two"]
    assert first_bytes(texts, 0) == []
    assert first_bytes(texts, 2) == [b"on"]
    assert first_bytes(texts, 3) == [b"one"]
    assert first_bytes(texts, 5) == [b"one"]
    assert first_bytes(texts, 6) == [b"one", "日".encode()]
    assert first_bytes(texts, 10) == [b"one", "日本".encode(), b"t"]
    assert first_bytes(texts, 99) == texts


def test_the_fingerprint_knows_order_and_borders_of_documents() -> None:
    prints = [
        fingerprint(texts)
        for texts in ([b"ab", b"c"], [b"a", b"bc"], [b"c", b"ab"], [b"abc"], [b"ab", b"C"], [])
    ]
    assert len(set(prints)) == len(prints)
    assert prints[0] == fingerprint([b"ab", b"c"])
