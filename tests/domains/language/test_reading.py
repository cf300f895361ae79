"""Documents read into a memory that is kept: what it costs, where it ends, and going on."""

import math
from pathlib import Path

import pytest
import torch
from memory_problems import assert_close, assert_same_bits, named
from tiny_language import SENTENCES, tiny_model

from titans_core import join, save_memory
from titans_domains.language import reading as module
from titans_domains.language.evaluate import bits_per_byte
from titans_domains.language.generate import read
from titans_domains.language.model import LanguageModel
from titans_domains.language.reading import (
    check_memory,
    check_target,
    describe_memory,
    load_reading,
    positions,
    read_stream,
    read_text,
    stream_of,
)
from titans_domains.language.tokenizers import BPETokenizer, ByteTokenizer

BYTES = ByteTokenizer()
TEXT = (SENTENCES[0] + SENTENCES[1]).encode()
MEMORIES = ("lmm", "mac", "mag", "mal", "mac+mal")


@pytest.mark.parametrize("mixer", MEMORIES)
def test_reading_costs_what_evaluation_says(mixer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(mixer=mixer).double()
    wanted = bits_per_byte(model, BYTES, [TEXT], "carried", window=32)
    monkeypatch.setattr(module, "PIECE", 9)
    fed: list[int] = []
    done = read_stream(model, BYTES, stream_of(BYTES, TEXT), progress=fed.append)
    assert done.bits_per_byte == pytest.approx(wanted, abs=1e-10)
    assert sum(fed) == len(TEXT) + 1
    # The last token is in the memory, though nobody was asked what comes after it.
    assert positions(done.state).tolist() == [len(TEXT) + 1]
    assert_close(named(done.state), named(read(model, BYTES, TEXT)[1]), 1e-10)


@pytest.mark.parametrize("mixer", MEMORIES)
def test_a_text_in_two_parts_leaves_the_memory_of_the_whole(mixer: str) -> None:
    model = tiny_model(mixer=mixer).double()
    whole = read_stream(model, BYTES, stream_of(BYTES, TEXT))
    first = read_stream(model, BYTES, stream_of(BYTES, TEXT[:29]))
    ids = stream_of(BYTES, TEXT[29:], first.state)
    assert len(ids) == len(TEXT) - 29
    second = read_stream(model, BYTES, ids, first.state)
    assert_close(named(second.state), named(whole.state), 1e-10)
    # All but the first byte of the second part, which is not foreseen from the state.
    assert whole.bits_per_byte is not None
    assert first.bits_per_byte is not None
    assert second.bits_per_byte is not None
    foreseen = bits_at(model, 29)
    parts = 29 * first.bits_per_byte + (len(TEXT) - 30) * second.bits_per_byte + foreseen
    assert parts == pytest.approx(len(TEXT) * whole.bits_per_byte, abs=1e-8)
    assert read_stream(model, BYTES, ids[:1], first.state).bits_per_byte is None


@torch.no_grad()
def bits_at(model: LanguageModel, index: int) -> float:
    logits, _ = model(torch.tensor([[BYTES.end, *TEXT[:index]]]))
    return -logits[0, -1].log_softmax(-1)[TEXT[index]].item() / math.log(2)


def test_bytes_are_counted_and_not_tokens() -> None:
    tokenizer = BPETokenizer.train([TEXT], 262)
    model = LanguageModel(tiny_model().backbone.config, tokenizer.vocab_size).double().eval()
    wanted = bits_per_byte(model, tokenizer, [TEXT], "carried", window=32)
    done = read_stream(model, tokenizer, stream_of(tokenizer, TEXT))
    assert len(tokenizer.encode(TEXT)) < len(TEXT)
    assert done.bits_per_byte == pytest.approx(wanted, abs=1e-10)


def test_a_reading_is_kept_and_described(tmp_path: Path) -> None:
    model, path = tiny_model(mixer="mag"), tmp_path / "a.memory"
    state = read_stream(model, BYTES, stream_of(BYTES, TEXT * 9)).state
    save_memory(path, state, model.backbone)
    loaded = load_reading(path, model)
    assert_same_bits(loaded, model.backbone.restart_caches(state))
    size, tokens = f"{path.stat().st_size:,}", f"{9 * len(TEXT) + 1:,}"
    assert describe_memory(path, loaded) == (
        f"{path}: {size} bytes, position {tokens} (tokens read, with start tokens)"
    )
    save_memory(path, join([state, state]), model.backbone)
    with pytest.raises(ValueError, match="holds 2 memories: split it"):
        load_reading(path, model)


def test_documents_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(FileNotFoundError, match="There is no document "):
        read_text(path)
    with pytest.raises(IsADirectoryError, match="is a folder: give the path of one document"):
        read_text(tmp_path)
    for content, sentence in ((b" \n", "is empty"), (b"a\0b", "must be text"), (b"\xff", "UTF-8")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=sentence):
            read_text(path)
    path.write_bytes(TEXT)
    assert read_text(path) == TEXT


def test_only_memory_files_are_replaced(tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "a"
    check_target(path, False)
    save_memory(path, model.backbone.fresh_state(1), model.backbone)
    with pytest.raises(FileExistsError, match="is there already: choose another --memory"):
        check_target(path, False)
    check_target(path, True)
    path.write_bytes(TEXT)
    with pytest.raises(FileExistsError, match="is not a memory file, so --force does not replace"):
        check_target(path, True)
    with pytest.raises(IsADirectoryError, match="is a folder"):
        check_target(tmp_path, True)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        check_target(tmp_path / "b/c", True)


def test_attention_has_no_memory_to_keep() -> None:
    for mixer in (*MEMORIES, "mamba", "samba"):
        check_memory(tiny_model(mixer=mixer), Path("run"))
    for window in (None, 8):
        model = tiny_model(mixer="attention", window=window)
        with pytest.raises(ValueError, match="run has no memory that could be kept: its mixer is"):
            check_memory(model, Path("run"))
    with pytest.raises(ValueError, match="its mixer is swa/attention"):
        check_memory(tiny_model(mixer="swa/attention"), Path("run"))
