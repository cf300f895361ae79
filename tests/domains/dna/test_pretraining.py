"""Causal and masked models: what they may know, that streams can be cut, and where a Markov model begins."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_mixers import SAMPLE
from tiny_dna import TOKENIZER, sequences, tiny_model

from titans_core import detach
from titans_core.state import named_tensors
from titans_domains.dna import calls, pretrained
from titans_domains.dna.markov import Markov
from titans_domains.dna.pretrain import PretrainTask, other_strand
from titans_domains.dna.pretrained import Mode, Pretrained
from titans_domains.dna.pretraining import CausalModel, MaskedModel, hide, target_nats
from titans_domains.dna.reading import reverse_complement
from titans_domains.dna.task import codes_of, last_share, tokens_of
from titans_domains.dna.tokenizers import MASK, KmerTokenizer
from titans_domains.train_config import TrainConfig

TIME = 50
GENOME = sequences(1, 300, 300)[0]


def causal(mixer: str = "lmm", order: int = 0) -> CausalModel:
    model = CausalModel(tiny_model(mixer, direction="forward"), TOKENIZER, order)
    if order:
        model.begin_from(Markov([codes_of(tokens_of(TOKENIZER, GENOME))], order))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.double().eval()


def masked() -> MaskedModel:
    return MaskedModel(tiny_model(pool=1), TOKENIZER).double().eval()


def tokens(rows: int = 2) -> torch.Tensor:
    return torch.randint(2, 6, (rows, TIME), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mixer", SAMPLE)
@pytest.mark.parametrize("at", [0, 13, TIME - 1])
@torch.no_grad()
def test_no_chance_depends_on_a_later_token(mixer: str, at: int) -> None:
    model, x = causal(mixer, order=2), tokens()
    changed = x.clone()
    changed[:, at] = 7 - x[:, at]
    before, after = model(x)[0], model(changed)[0]
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.allclose(before[:, at], after[:, at])


@pytest.mark.parametrize("mixer", SAMPLE)
@pytest.mark.parametrize("cuts", [[1], [7, 8, 30], list(range(1, TIME))], ids=len)
@torch.no_grad()
def test_a_stream_may_be_cut_anywhere(mixer: str, cuts: list[int]) -> None:
    model, x = causal(mixer, order=3), tokens()
    whole, last = model(x)
    state, parts = None, []
    for first, end in zip([0, *cuts], [*cuts, TIME], strict=True):
        chances, state = model(x[:, first:end], state)
        parts.append(chances)
    assert torch.allclose(torch.cat(parts, 1)[..., 2:6], whole[..., 2:6], rtol=0, atol=1e-10)
    more = tokens()[:, :20]
    ours, theirs = model(more, state)[0], model(more, last)[0]
    assert torch.allclose(ours[..., 2:6], theirs[..., 2:6], rtol=0, atol=1e-10)


@torch.no_grad()
def test_only_bases_are_predicted() -> None:
    for chances in (causal()(tokens())[0], masked()(tokens())):
        assert torch.allclose(chances[..., 2:6].exp().sum(-1), torch.tensor(1.0).double())
        assert chances[..., [0, 1, 6]].exp().sum() == 0
    with_unknown = KmerTokenizer(2)
    model = CausalModel(tiny_model(direction="forward"), with_unknown)
    assert model.allowed.tolist() == [False] * 2 + [True] * 16 + [False]


@torch.no_grad()
def test_a_model_that_has_not_learned_is_its_markov_model() -> None:
    model = causal(order=3)
    torch.nn.init.zeros_(model.out.weight)
    torch.nn.init.zeros_(model.out.bias)
    assert model.weight is not None
    torch.nn.init.zeros_(model.weight.weight)
    torch.nn.init.ones_(model.weight.bias)
    # An N, and what follows until three known bases stand before, the model knows nothing of.
    text = GENOME[:40] + "N" + GENOME[40:]
    reader = Pretrained(model, TOKENIZER, 16)
    (reading,) = reader.bits_per_base([text])
    markov = Markov([codes_of(tokens_of(TOKENIZER, GENOME))], 3)
    wanted = markov.bits(codes_of(tokens_of(TOKENIZER, text)))
    known = np.array([i for i in range(3, len(text)) if "N" not in text[i - 3 : i + 1]])
    assert len(known) > 200
    assert np.allclose(reading.bits[known], wanted[known], atol=1e-6)
    lone = [i for i in range(len(text)) if i < 3 or ("N" in text[i - 3 : i] and text[i] != "N")]
    assert np.allclose(reading.bits[lone], 2)
    assert np.isnan(reading.bits[[i for i, c in enumerate(text) if c == "N"]]).all()


@pytest.mark.parametrize("mode", ["carried", "frozen", "reset"])
@pytest.mark.parametrize("size", [1, 7, 60])
def test_how_a_stream_comes_changes_no_bit_of_its_cost(mode: Mode, size: int) -> None:
    reader = Pretrained(causal(order=2), TOKENIZER, 12)
    text = GENOME[:60].replace("N", "A")
    (whole,) = reader.bits_per_base([text], mode=mode)
    chunks = [text[i : i + size] for i in range(0, len(text), size)]
    readings = list(reader.bits_per_base(chunks, mode=mode))
    assert np.allclose(np.concatenate([r.bits for r in readings]), whole.bits, rtol=0, atol=1e-10)
    # Or with the state handed over.
    (first,) = reader.bits_per_base([text[:25]], mode=mode)
    (second,) = reader.bits_per_base([text[25:]], first.state, mode=mode)
    both = np.concatenate([first.bits, second.bits])
    assert np.allclose(both, whole.bits, rtol=0, atol=1e-10)


def test_the_modes_differ_in_what_the_memory_may_do() -> None:
    reader = Pretrained(causal(), TOKENIZER, 12)
    text = GENOME[:60].replace("N", "A")
    cost = {m: next(iter(reader.bits_per_base([text], mode=m))).bits for m in ("carried", "reset")}
    frozen = next(iter(reader.bits_per_base([text], mode="frozen")))
    assert np.allclose(cost["carried"][:12], cost["reset"][:12])
    assert not np.allclose(cost["carried"][12:], cost["reset"][12:], atol=1e-4)
    assert not np.allclose(cost["carried"], frozen.bits, atol=1e-4)
    fresh = reader.fresh_state().model.encoder.backbone[0].memory.memory
    kept = frozen.state.model.encoder.backbone[0].memory.memory
    assert all(map(torch.equal, fresh, kept))


@torch.no_grad()
def test_the_likelihood_of_a_sequence_is_what_its_bases_cost() -> None:
    rows = ["ACGTTGCA", "A", "ACGNNACGTTAGGACC"]
    reader = Pretrained(causal(order=2), TOKENIZER, 12)
    together = reader.log_likelihood(rows)
    for row, value in zip(rows, together, strict=True):
        (reading,) = reader.bits_per_base([row])
        assert value == pytest.approx(-np.nansum(reading.bits) * math.log(2))
        assert reader.log_likelihood([row])[0] == pytest.approx(value)
    model = masked()
    reader = Pretrained(model, TOKENIZER, 12)
    ids = torch.from_numpy(TOKENIZER.encode(rows[0]))
    total = 0.0
    for place in range(len(ids)):
        hidden = ids.clone()
        hidden[place] = MASK
        total += model(hidden[None])[0, place, ids[place]].item()
    found = reader.log_likelihood(rows)
    assert found[0] == pytest.approx(total)
    assert np.isfinite(found).all()


@torch.no_grad()
def test_no_more_bases_are_read_at_once_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["ACGTTGCA", "ACG", "ACGNNACGTTAGGACC"]
    for model in (causal(), masked()):
        reader = Pretrained(model, TOKENIZER, 12)
        wanted = reader.log_likelihood(rows), reader.embed(rows)
        sizes: list[int] = []

        def watch(module: Any, args: Any, sizes: list[int] = sizes) -> None:
            sizes.append(args[0].numel() if len(args[0]) > 1 else 0)

        with monkeypatch.context() as patch, model.encoder.register_forward_pre_hook(watch):
            patch.setattr(calls, "MOST_BASES", 20)
            patch.setattr(pretrained, "MOST_BASES", 20)
            found = reader.log_likelihood(rows), reader.embed(rows)
        assert 0 < max(sizes) <= 20
        for ours, theirs in zip(found, wanted, strict=True):
            assert np.allclose(ours, theirs, atol=1e-6)


def test_embeddings_do_not_see_padding() -> None:
    for model in (causal(), masked()):
        reader = Pretrained(model, TOKENIZER, 12)
        rows = ["ACGTTGCA", "A", "ACGNNACGTTAGGACC"]
        both = reader.embed(rows)
        assert np.allclose(both[1], reader.embed(rows[1:2])[0], atol=1e-6)
        assert both.shape == (3, model.encoder.width)


def test_models_refuse_what_they_cannot_do() -> None:
    reader = Pretrained(masked(), TOKENIZER, 12)
    with pytest.raises(ValueError, match="A masked model reads no stream"):
        next(iter(reader.bits_per_base(["ACGT"])))
    with pytest.raises(ValueError, match="mode must be one of carried, frozen, reset"):
        next(iter(Pretrained(causal(), TOKENIZER, 12).bits_per_base(["A"], mode="x")))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="direction must be 'forward'"):
        CausalModel(tiny_model(), TOKENIZER)
    with pytest.raises(ValueError, match="direction must be 'both' and stem.pool 1"):
        MaskedModel(tiny_model(pool=2), TOKENIZER)
    with pytest.raises(ValueError, match="the neighbours of a hidden k-mer spell it out"):
        MaskedModel(tiny_model(pool=1), KmerTokenizer(3))
    with pytest.raises(ValueError, match="order must be 0 for tokens of kind 'kmer'"):
        CausalModel(tiny_model(direction="forward"), KmerTokenizer(3), 2)


def test_a_share_of_the_bases_is_hidden() -> None:
    x = torch.randint(2, 7, (200, 100))
    allowed = masked().allowed
    hidden, chosen = hide(x, allowed, MASK, 0.2)
    assert not chosen[x == 6].any()
    assert chosen[x < 6].float().mean().item() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(hidden[~chosen], x[~chosen])
    assert (hidden[chosen] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    kept = (hidden == x)[chosen].float().mean().item()
    assert kept == pytest.approx(0.1 + 0.1 / 4, abs=0.02)
    assert hidden.max() <= 6


def task(model: CausalModel | MaskedModel, *contigs: str, **settings: bool) -> PretrainTask:
    ids = [tokens_of(TOKENIZER, c) for c in contigs]
    return PretrainTask(
        model, TOKENIZER, ids, ids[:1],
        config=TrainConfig(batch_size=2, **settings), seq_len=16, seed=0,
    )  # fmt: skip


def test_the_other_strand_of_tokens_is_that_of_the_bases() -> None:
    ignored = np.arange(300) < 100
    ids = tokens_of(TOKENIZER, GENOME, ignored)
    assert TOKENIZER.complement is not None
    there = other_strand(ids, TOKENIZER.complement)
    mirrored = tokens_of(TOKENIZER, reverse_complement(GENOME), ignored[::-1])
    assert np.array_equal(there, mirrored)


def test_bases_that_are_left_out_cost_nothing_and_are_read() -> None:
    model = causal().float()
    ids = tokens_of(TOKENIZER, GENOME[:48], np.arange(48) % 2 == 0)
    made = PretrainTask(
        model, TOKENIZER, [ids], [ids], config=TrainConfig(batch_size=1), seq_len=48, seed=0
    )
    batch = next(made.batches(None))[0]
    inputs, targets, counted = made._tokens(batch)
    assert inputs.max() < 7
    assert counted.sum() == sum(b != "N" for b in GENOME[1:48:2])
    chances, _ = model(inputs, mask=batch.mask)
    wanted = target_nats(chances, targets)[counted].mean().item()
    assert made.step(batch, ()).loss.item() == pytest.approx(wanted, rel=1e-5)


def test_a_batch_of_which_nothing_counts_has_no_figure() -> None:
    ids = tokens_of(TOKENIZER, "ACGT" * 24, np.arange(96) < 48)
    made = PretrainTask(
        causal().float(),
        TOKENIZER,
        [ids],
        [ids],
        config=TrainConfig(batch_size=1),
        seq_len=48,
        seed=0,
    )
    source = made.batches(None)
    first, second = (made.step(next(source)[0], ()) for _ in range(2))
    assert (first.loss.item(), second.log["loss"]) == (0, second.loss.item())
    assert math.isnan(first.log["loss"])
    assert math.isnan(first.log["bits"])


@pytest.mark.parametrize("mixer", ["lmm", "mag"])
def test_rows_carry_their_memory_until_their_contig_ends(mixer: str) -> None:
    """A row's memory is that of one read of its contig, and a new contig begins afresh."""
    model = causal(mixer)
    made = task(model, GENOME[:40], GENOME[100:150], GENOME[150:190])
    source, cursor, state = made.batches(None), None, None
    read: dict[int, list[int]] = {0: [], 1: []}
    begun = {0: 0, 1: 0}
    for _ in range(6):
        batch, cursor = next(source)
        step = made.step(batch, state if state is not None else made.fresh_state())
        state = step.state
        for row in (0, 1):
            if batch.reset is not None and batch.reset[row, 0]:
                read[row], begun[row] = [], begun[row] + 1
            kept = slice(None) if batch.mask is None else batch.mask[row]
            read[row] += (batch.inputs[row][kept] % 2**15).tolist()
        taken = made._take_up(state)
        with torch.no_grad():
            for row in (0, 1):
                ours = named_tensors(taken)
                alone = named_tensors(model(torch.tensor([read[row]]))[1])
                memories = [name for name in ours if ".memory.memory" in name]
                assert memories
                for name in memories:
                    assert torch.allclose(ours[name][row], alone[name][0], rtol=0, atol=1e-9)
    assert cursor is not None
    assert min(begun.values()) >= 2


def test_every_parameter_gets_a_gradient() -> None:
    for model in (causal(order=2).float().train(), masked().float().train()):
        made = task(model, GENOME.replace("N", "A"))
        source, state = made.batches(None), made.fresh_state()
        for _ in range(3):
            step = made.step(next(source)[0], state)
            state = detach(step.state)
            step.loss.backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
        assert idle == []


def test_validation_is_the_same_every_time_and_leaves_training_as_it_was() -> None:
    for model in (causal().float(), masked().float()):
        made = task(model.train(), GENOME)
        torch.manual_seed(3)
        before = torch.get_rng_state()
        first = made.validate()
        assert first == made.validate()
        assert torch.equal(torch.get_rng_state(), before)
        assert model.training
        assert 1.5 < first["bits_per_base"] < 3


def test_validation_in_one_stream_is_what_a_reader_says() -> None:
    model = causal().float()
    (reading,) = Pretrained(model, TOKENIZER, 16).bits_per_base([GENOME])
    assert task(model, GENOME).validate()["bits_per_base"] == pytest.approx(
        np.nanmean(reading.bits), rel=1e-5
    )


def test_a_genome_s_end_is_held_out() -> None:
    parts = [np.arange(10), np.arange(5), np.arange(5)]
    first, second = last_share(parts, 0.4)
    assert [len(p) for p in first] == [10, 2]
    assert [p.tolist() for p in second] == [[2, 3, 4], [0, 1, 2, 3, 4]]
    assert last_share(parts, 0.0)[1] == []


def test_too_little_to_read_and_a_growing_state_are_said() -> None:
    with pytest.raises(ValueError, match="There are 9 tokens to train on, fewer than one sequence"):
        task(causal(), "ACGTACGTA")
    with pytest.raises(ValueError, match="train.carry needs a state that does not grow"):
        task(causal("attention"), GENOME, carry=True)
    assert not task(causal("attention"), GENOME).carry
