"""The classifier's network: padding is inert, strands are alike, position is known, all parts learn."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from small_mixers import SAMPLE
from tiny_dna import TOKENIZER, network, sequences, tiny_model
from torch import nn

from titans_domains.dna.encoder import Direction, Strands, reverse
from titans_domains.dna.heads import KmerBag
from titans_domains.dna.model import SequenceNetwork
from titans_domains.dna.reading import reverse_complement
from titans_domains.dna.stem import MaskedBatchNorm
from titans_domains.dna.tokenizers import FIRST_BASE, MASK, BpeTokenizer, KmerTokenizer, pad_batch

LENGTHS = [40, 1, 17, 2, 33, 25]


def batch(lengths: list[int] = LENGTHS, multiple: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    rows = [sequences(1, n, n, seed=n)[0] for n in lengths]
    return pad_batch([TOKENIZER.encode(row) for row in rows], multiple=multiple)


@pytest.mark.parametrize("mixer", SAMPLE)
@pytest.mark.parametrize(
    ("direction", "strands"), [("both", "one"), ("forward", "one"), ("both", "equivariant")]
)
@torch.no_grad()
def test_a_padded_batch_is_its_single_sequences(
    mixer: str, direction: Direction, strands: Strands
) -> None:
    model = network(tiny_model(mixer, direction=direction, strands=strands))
    tokens, mask = batch()
    together = model(tokens, mask)
    further = model(*batch(multiple=64))
    assert torch.allclose(further, together, rtol=0, atol=1e-12)
    for row, length in enumerate(LENGTHS):
        alone = model(tokens[row : row + 1, :length])
        assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-12)
    assert len(together.unique(dim=0)) == len(LENGTHS)


def test_batch_norm_counts_tokens_alone() -> None:
    norm = MaskedBatchNorm(3).double()
    x, mask = torch.randn(2, 5, 3).double(), torch.arange(5) < torch.tensor([[5], [2]])
    found = norm(x, mask)
    there = x[mask]
    wanted = (there - there.mean(0)) / (there.var(0, unbiased=False) + 1e-5).sqrt()
    assert torch.allclose(found[mask], wanted)
    assert torch.allclose(norm.running_mean, 0.1 * there.mean(0))
    assert not found[~mask].any()


@pytest.mark.parametrize("size", [0, 5])
@torch.no_grad()
def test_padding_is_inert_with_and_without_convolutions_before_pooling(size: int) -> None:
    config = tiny_model()
    model = network(replace(config, stem=replace(config.stem, size=size)))
    tokens, mask = batch()
    together = model(tokens, mask)
    for row, length in enumerate(LENGTHS):
        alone = model(tokens[row : row + 1, :length])
        assert torch.allclose(alone[0], together[row], rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_padded_batch_is_its_single_sequences_in_float32() -> None:
    model = network(tiny_model()).float()
    tokens, mask = batch()
    together = model(tokens, mask)
    for row, length in enumerate(LENGTHS):
        assert torch.allclose(model(tokens[row : row + 1, :length])[0], together[row], atol=1e-6)


@pytest.mark.parametrize("mixer", SAMPLE)
@torch.no_grad()
def test_what_stands_under_the_mask_and_in_other_rows_changes_no_bit(mixer: str) -> None:
    model = network(tiny_model(mixer))
    tokens, mask = batch()
    other = torch.where(mask, tokens, MASK)
    other[3] = (tokens[3] + 1) % 7
    changed = model(other, mask) != model(tokens, mask)
    assert changed.any(1).tolist() == [row == 3 for row in range(len(LENGTHS))]


def test_padding_changes_no_gradient_in_training() -> None:
    model = network(tiny_model()).train()
    gradients = []
    for multiple in (1, 64):
        model.zero_grad()
        model(*batch(multiple=multiple)).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-10)


def test_a_row_is_reversed_within_its_length() -> None:
    x = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]])
    assert reverse(x, x > 0).tolist() == [[3, 2, 1, 0, 0], [5, 4, 3, 2, 1]]
    wide = torch.randn(2, 5, 3)
    assert torch.equal(reverse(wide, x > 0)[0, :3], wide[0, :3].flip(0))
    assert torch.equal(reverse(reverse(wide, x > 0), x > 0), wide)
    assert torch.equal(reverse(wide, None), wide.flip(1))


@pytest.mark.parametrize("strands", ["average", "equivariant"])
@pytest.mark.parametrize("mixer", ["lmm", "attention"])
@torch.no_grad()
def test_both_strands_have_the_same_logits(mixer: str, strands: Strands) -> None:
    rows = sequences(8, seed=3)
    here = pad_batch([TOKENIZER.encode(row) for row in rows])
    there = pad_batch([TOKENIZER.encode(reverse_complement(row)) for row in rows])
    model = network(tiny_model(mixer, strands=strands))
    assert torch.allclose(model(*here), model(*there), rtol=0, atol=1e-12)
    single = network(tiny_model(mixer))
    assert not torch.allclose(single(*here), single(*there), atol=1e-3)
    # Averaging makes nothing blind: other bases have other logits.
    assert len(model(*here).unique(dim=0)) == len(rows)


def training(model: SequenceNetwork) -> SequenceNetwork:
    """The model in training, but for batch norm, which would tell each row of the others."""
    model.train()
    for module in model.modules():
        if isinstance(module, MaskedBatchNorm):
            module.eval()
    return model


@torch.no_grad()
def test_an_equivariant_model_trains_on_both_strands_and_average_on_one_of_them() -> None:
    rows = sequences(16, 30, 30)
    here = pad_batch([TOKENIZER.encode(row) for row in rows])[0]
    there = pad_batch([TOKENIZER.encode(reverse_complement(row)) for row in rows])[0]
    model = training(network(tiny_model(strands="equivariant")))
    assert torch.allclose(model(here), model(there), rtol=0, atol=1e-12)
    average, single = network(tiny_model(strands="average")), network(tiny_model())
    average.load_state_dict(single.state_dict())
    forward, back, drawn = single(here), single(there), training(average)(here)
    turned = [torch.allclose(d, b) for d, b in zip(drawn, back, strict=True)]
    assert 0 < sum(turned) < len(rows)
    for row, was_turned in enumerate(turned):
        assert torch.allclose(drawn[row], (back if was_turned else forward)[row])
    assert torch.allclose(average.eval()(here), (forward + back) / 2)


def test_tokens_without_complement_have_one_strand() -> None:
    tokenizer = KmerTokenizer(4, stride=2)
    with pytest.raises(ValueError, match="strands must be 'one' for tokens"):
        SequenceNetwork(tiny_model(strands="average"), tokenizer, 2)


@torch.no_grad()
def test_overlapping_kmers_have_two_strands() -> None:
    tokenizer = KmerTokenizer(3)
    model = SequenceNetwork(tiny_model(strands="equivariant"), tokenizer, 2)
    rows = sequences(4, 9, 30)
    model = model.double().eval()
    here = model(*pad_batch([tokenizer.encode(row) for row in rows]))
    there = model(*pad_batch([tokenizer.encode(reverse_complement(row)) for row in rows]))
    assert torch.allclose(here, there, rtol=0, atol=1e-12)


def test_only_tokens_of_single_bases_are_counted_as_kmers() -> None:
    """BPE of bases alone has as many tokens, in another order."""
    pairs = BpeTokenizer.train(["ACGTN"], 7)
    assert pairs.vocab_size == TOKENIZER.vocab_size
    assert SequenceNetwork(tiny_model(), pairs, 2).bag is None
    assert SequenceNetwork(tiny_model(), TOKENIZER, 2).bag is not None


@pytest.mark.parametrize("part", ["slots", "place_channels", "linear"])
@torch.no_grad()
def test_each_part_of_the_head_knows_position(part: str) -> None:
    """The same bases in another order of places: only a part that knows position tells them apart."""
    model = network(tiny_model(pool=1, positions=12))
    hidden = torch.randn(1, 12, model.encoder.width, dtype=torch.float64)
    turned = hidden.roll(3, 1)
    pooling = model.pooling
    width = model.encoder.width
    before, after = pooling(hidden, None), pooling(turned, None)
    assert torch.allclose(before[:, :width], after[:, :width])
    if part == "slots":
        assert not torch.allclose(before[:, width : 3 * width], after[:, width : 3 * width])
    elif part == "place_channels":
        assert not torch.allclose(before[:, 3 * width :], after[:, 3 * width :])
    else:
        assert model.linear is not None
        tokens = torch.tensor([[2, 3, 4, 5, 2, 2]])
        assert not torch.allclose(
            model.linear(tokens, None, None), model.linear(tokens.roll(1, 1), None, None)
        )


@torch.no_grad()
def test_kmers_are_counted_wherever_they_stand_and_never_over_an_unknown_base() -> None:
    bag = KmerBag(3, 2, FIRST_BASE)
    rows = [*sequences(5, 1, 40), "ACGT", "NN", "A"]
    tokens, mask = pad_batch([TOKENIZER.encode(row) for row in rows], multiple=64)
    kmers = ["".join(p) for k in (1, 2, 3) for p in product("ACGT", repeat=k)]
    counts = bag.counts(tokens, mask, None)
    assert counts.shape == (8, len(kmers))
    for row, found in zip(rows, counts, strict=True):
        wanted = [sum(row.startswith(k, i) for i in range(len(row))) for k in kmers]
        assert found.tolist() == wanted
    nn.init.normal_(bag.weight)
    tf = torch.where(counts > 0, 1 + counts.clamp_min(1).log(), 0)
    wanted = 10 * F.normalize(tf) @ bag.weight
    assert torch.allclose(bag(tokens, mask, None), wanted, atol=1e-5)
    # Without a base there is nothing to say, and no NaN.
    assert not bag(tokens, mask, None)[6].any()


@torch.no_grad()
def test_sequences_longer_than_the_known_positions_are_read_to_their_end() -> None:
    model = network(tiny_model(positions=12))
    tokens, mask = batch([40, 35])
    changed = tokens.clone()
    changed[:, 30] = 7 - tokens[:, 30]
    assert not torch.allclose(model(changed, mask), model(tokens, mask), atol=1e-6)


@pytest.mark.parametrize("mixer", SAMPLE)
def test_every_parameter_gets_a_gradient(mixer: str) -> None:
    model = network(tiny_model(mixer)).train()
    tokens, mask = batch()
    tokens[0, :2] = torch.tensor([MASK, 0])  # their embeddings are read too
    model(tokens, mask).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_the_scale_s_gradient_is_input_times_gradient() -> None:
    model = network(tiny_model(strands="average"))
    tokens, mask = batch([20, 11])
    scale = torch.ones(tokens.shape, dtype=torch.float64, requires_grad=True)
    model(tokens, mask, scale)[:, 1].sum().backward()
    assert scale.grad is not None
    assert not scale.grad[~mask].any()
    # On the other strand the same bases, in its order, add the same.
    there = model.other_strand(tokens, mask)
    turned = torch.ones_like(scale, requires_grad=True)
    model(there, mask, turned)[:, 1].sum().backward()
    assert turned.grad is not None
    assert torch.allclose(reverse(turned.grad, mask), scale.grad, rtol=0, atol=1e-12)
    for row, at in ((0, 3), (1, 10)):
        step = torch.zeros_like(scale)
        step[row, at] = 1e-6
        with torch.no_grad():
            up, down = (model(tokens, mask, scale + s)[row, 1] for s in (step, -step))
        assert scale.grad[row, at].item() == pytest.approx(((up - down) / 2e-6).item(), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("strands", {"strands": "two"}),
        ("direction", {"direction": "back"}),
        ("dropout", {"dropout": 1.0}),
    ],
)
def test_a_setting_that_cannot_be_is_named(name: str, values: dict[str, object]) -> None:
    from titans_domains.dna import ModelConfig

    with pytest.raises(ValueError, match=f"{name} must be"):
        ModelConfig(**values)  # type: ignore[arg-type]
