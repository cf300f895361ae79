"""Tokens give their sequences back, know the other strand, and are saved as JSON."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dna_files import bases
from hypothesis import given
from hypothesis import strategies as st

from titans_domains.dna.reading import reverse_complement
from titans_domains.dna.tokenizers import (
    BpeTokenizer,
    DnaTokenizer,
    KmerTokenizer,
    NucleotideTokenizer,
    load_tokenizer,
    make_tokenizer,
    pad_batch,
    save_tokenizer,
)

SEQUENCES = st.text(alphabet="ACGTN", min_size=1, max_size=60)
BPE = BpeTokenizer.train([bases(3000, letters="ACGTN"), "ACGTACGT" * 200], 40)
ALL: list[DnaTokenizer] = [NucleotideTokenizer(), KmerTokenizer(3), KmerTokenizer(4, 4), BPE]
IDS = ["nucleotide", "3-mer", "4-mer by 4", "bpe"]


@given(SEQUENCES)
def test_bases_and_bpe_give_every_sequence_back(sequence: str) -> None:
    for tokenizer in (NucleotideTokenizer(), BPE):
        ids = tokenizer.encode(sequence)
        assert tokenizer.decode(ids) == sequence
        assert tokenizer.decode([0, *ids, 1]) == sequence


@given(SEQUENCES, st.integers(1, 5), st.data())
def test_k_mers_are_the_words_of_the_sequence(sequence: str, k: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, k))
    tokenizer = KmerTokenizer(k, stride)
    if len(sequence) < k:
        with pytest.raises(ValueError, match=f"has {len(sequence)} bases, and tokens of {k} need"):
            tokenizer.encode(sequence)
        return
    starts = list(range(0, len(sequence) - k + 1, stride))
    if starts[-1] != len(sequence) - k:
        starts.append(len(sequence) - k)
    words = [sequence[i : i + k] for i in starts]
    ids = tokenizer.encode(sequence)
    assert len(ids) == len(words)
    for word, number in zip(words, ids, strict=True):
        assert tokenizer.decode([number]) == ("N" * k if "N" in word else word)


@given(SEQUENCES)
def test_the_complement_of_the_tokens_is_that_of_the_sequence(sequence: str) -> None:
    for tokenizer in (NucleotideTokenizer(), KmerTokenizer(3)):
        if len(sequence) < tokenizer.shortest:
            continue
        ids = tokenizer.encode(sequence)
        assert tokenizer.complement is not None
        other = tokenizer.complement[ids[::-1]]
        assert other.tolist() == tokenizer.encode(reverse_complement(sequence)).tolist()


def test_where_tokens_do_not_mirror_there_is_no_complement() -> None:
    assert KmerTokenizer(4, 4).complement is None
    assert BPE.complement is None


@pytest.mark.parametrize("tokenizer", ALL, ids=IDS)
def test_ids_keep_clear_of_padding_and_mask(tokenizer: DnaTokenizer) -> None:
    ids = tokenizer.encode(bases(500, letters="ACGTN"))
    assert ids.dtype == np.int64
    assert ids.min() > max(tokenizer.pad_id, tokenizer.mask_id)
    assert ids.max() < tokenizer.vocab_size
    if tokenizer.complement is not None:
        assert sorted(tokenizer.complement) == list(range(tokenizer.vocab_size))


@pytest.mark.parametrize("tokenizer", ALL, ids=IDS)
def test_a_saved_tokenizer_encodes_alike(tokenizer: DnaTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tokenizer, tmp_path)
    again = load_tokenizer(tmp_path)
    sequence = bases(200, seed=3, letters="ACGTN")
    assert again.encode(sequence).tolist() == tokenizer.encode(sequence).tolist()
    assert (again.kind, again.vocab_size, again.table()) == (
        tokenizer.kind, tokenizer.vocab_size, tokenizer.table(),
    )  # fmt: skip


def test_bpe_learns_what_is_frequent() -> None:
    assert BPE.vocab_size == 40
    assert len(BPE.encode("ACGTACGT" * 20)) < 80
    assert max(map(len, BPE.pieces[2:])) >= 8


@pytest.mark.parametrize("tokenizer", ALL, ids=IDS)
def test_what_is_not_clean_is_refused_with_its_place(tokenizer: DnaTokenizer) -> None:
    with pytest.raises(
        ValueError, match="r1, position 5: tokens are made of A, C, G, T and N: got 'a'"
    ):
        tokenizer.encode("ACGTaCGT", "r1")
    with pytest.raises(ValueError, match="position 2: .* got 'é'"):
        tokenizer.encode("AéGTCGT")
    with pytest.raises(ValueError, match="r1 is empty"):
        tokenizer.encode("", "r1")


def test_tokenizers_by_name() -> None:
    assert make_tokenizer("nucleotide").kind == "nucleotide"
    assert make_tokenizer("kmer", k=4, stride=2).vocab_size == 4**4 + 3
    assert make_tokenizer("bpe", ["ACGTACGT" * 9], vocab_size=9).vocab_size == 9
    with pytest.raises(ValueError, match="tokenizer must be one of nucleotide, kmer, bpe: got 'x'"):
        make_tokenizer("x")
    with pytest.raises(ValueError, match="k must be between 1 and 10"):
        make_tokenizer("kmer", k=11)
    with pytest.raises(ValueError, match="stride must be between 1 and k = 3"):
        make_tokenizer("kmer", k=3, stride=4)
    with pytest.raises(ValueError, match="vocab_size must be at least 7"):
        make_tokenizer("bpe", ["ACGT"], vocab_size=6)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{", "is cut short or is no JSON"), ("{}", "is no tokenizer of DNA"),
     ('{"kind": "x"}', "its kind is 'x'"), ('{"kind": "kmer", "k": 3}', "is no tokenizer of DNA"),
     ('{"kind": "bpe", "model": {}}', "is no tokenizer of DNA"), ("[]", "is no tokenizer of DNA")],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError, match="tokenizer.json") as error:
        load_tokenizer(tmp_path)
    assert sentence in str(error.value)


def test_a_run_without_a_tokenizer_is_said_to_be_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is this a run of titans dna"):
        load_tokenizer(tmp_path)
    save_tokenizer(NucleotideTokenizer(), tmp_path)
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == {"kind": "nucleotide"}


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 4))
def test_padding_stands_on_the_right_and_is_masked(lengths: list[int], multiple: int) -> None:
    rows = [np.arange(2, 2 + n) for n in lengths]
    tokens, mask = pad_batch(rows, multiple=multiple)
    assert tokens.shape == mask.shape == (len(rows), -(-max(lengths) // multiple) * multiple)
    assert (tokens.dtype, mask.dtype) == (torch.int64, torch.bool)
    for row, ids, there in zip(rows, tokens, mask, strict=True):
        assert ids[: len(row)].tolist() == row.tolist()
        assert not ids[len(row) :].any()
        assert there.tolist() == [i < len(row) for i in range(len(there))]
