"""What a training of a language model takes before it is begun: memory of a device, and time.

Parameters are counted without making them. What a step takes beside them is measured in small on this
machine's CPU and carried over (see `titans_core.planning`); what GPUs do in a second is assumed.
"""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from titans_core.planning import (
    TRIES,
    Forward,
    Recipe,
    Taken,
    autocast,
    seconds,
    stack_step,
    taken,
)
from titans_domains.language.model import LanguageModel, next_token_loss
from titans_domains.language.task import LanguageConfig
from titans_domains.language.tokenizers import make_tokenizer
from titans_domains.weights import planned

SMALLEST = 32
"""Tokens whose loss is measured: all others' is the same."""
ADAM = 2**20
"""Parameters whose optimiser is timed."""


class Parameters(NamedTuple):
    """Numbers of them by what they belong to."""

    embedding: int  # the output layer too
    mixers: int
    feed_forward: int
    norms: int

    @classmethod
    def of(cls, model: nn.Module) -> "Parameters":
        counts = dict.fromkeys(cls._fields, 0)
        for name, p in model.named_parameters():
            counts[_part_of(name)] += p.numel()
        return cls(**counts)


def _part_of(name: str) -> str:
    if name.startswith("embedding."):
        return "embedding"
    if ".ffn." in name:
        return "feed_forward"
    return "norms" if ".ffn_norm." in name or ".mixer_norm." in name or name == LAST else "mixers"


LAST = "backbone.norm.weight"


@dataclass(frozen=True, kw_only=True)
class Step:
    """Bytes of one process for a part of a step, by what has to be there for it.

    `rows` of `length` tokens at once, `parts` times a step.
    """

    rows: int
    parts: int
    parameters: int
    optimiser: int
    feed_forward: int  # of all parameters, in how many layers
    layers: int
    embedding: int
    states: float  # carried from step to step, beside those that the stack's step has made
    stack: Taken
    loss: Taken

    def most(self, processes: int, strategy: str) -> float:
        """The most that a process holds at once."""
        weights, gradients, optimiser = self.shared(processes, strategy)
        fixed = weights + optimiser + self.states
        # Gradients of the step before are there until its first backward.
        before = gradients if self.parts > 1 else 0.0
        own = self.embedding if self.parts == 1 else 0.0
        stack, loss = self.stack, self.loss
        return fixed + max(
            gradients + max(stack.forward, stack.kept + loss.forward, stack.put_down + loss.kept),
            before + stack.kept + loss.backward,
            before + own + stack.backward,
            # With all gradients but those of the first layer, to which the embedding's are added.
            gradients + self.embedding + stack.backward - stack.kept + stack.kept / self.layers,
            gradients + self.embedding,
        )

    def shared(self, processes: int, strategy: str) -> tuple[float, float, float]:
        """Weights, gradients and optimiser of one of several processes."""
        whole = float(self.parameters)
        if processes == 1:
            return whole, whole, self.optimiser
        if strategy == "ddp":
            # Gradients are sent from buckets of their own.
            return whole, 2 * whole, self.optimiser
        # All but the feed-forward layers is whole during a step, and of those one, and the next.
        rest, layer = whole - self.feed_forward, self.feed_forward / self.layers
        share = whole / processes
        return share + rest + 2 * layer, share + rest + layer, self.optimiser / processes


def vocabulary(config: LanguageConfig) -> int:
    """Without training a tokenizer."""
    data = config.data
    if data.tokenizer == "bpe":
        # Its end of a document is one more.
        return data.vocab_size + 1
    return make_tokenizer(data.tokenizer, data.vocab_size, ()).vocab_size


def recipe_of(config: LanguageConfig, *, checkpoint: bool) -> Recipe:
    precision, carry = config.train.precision, config.train.carry
    return Recipe(
        torch.float64 if precision == "float64" else torch.float32,
        bf16=precision == "bf16",
        checkpoint=checkpoint,
        carry=config.model.bounded if carry is None else carry,
    )


class Planner:
    """Plans one configuration's steps; what was measured once is measured no more."""

    def __init__(self, config: LanguageConfig, *, on_gpu: bool = False) -> None:
        self.config, self.vocab, self.on_gpu = config, vocabulary(config), on_gpu
        if config.data.seq_len % config.model.grid:
            raise ValueError(
                f"data.seq_len must be a multiple of {config.model.grid}, the tokens between which a "
                f"document may begin: got {config.data.seq_len}."
            )
        model = planned(lambda: LanguageModel(config.model, self.vocab))
        self.parameters = Parameters.of(model)
        self.size = 8 if config.train.precision == "float64" else 4
        self.found: dict[tuple[int, bool], Taken] = {}

    def step(self, rows: int, parts: int, *, checkpoint: bool) -> Step:
        config, size = self.config, self.size
        recipe = recipe_of(config, checkpoint=checkpoint)
        whole = sum(self.parameters) * size
        stack = self.stack(rows, checkpoint=checkpoint)
        return Step(
            rows=rows,
            parts=parts,
            parameters=whole,
            optimiser=2 * whole,
            feed_forward=self.parameters.feed_forward * size,
            layers=config.model.num_layers,
            embedding=self.parameters.embedding * size,
            # Those before the step and after it, of which the stack's step has made the last. A GPU holds
            # those of one part; the others wait outside of it.
            states=(1 if self.on_gpu else 2 * parts - 1) * stack.carried,
            stack=stack,
            loss=self.loss(rows * config.data.seq_len, recipe),
        )

    def stack(self, rows: int, *, checkpoint: bool) -> Taken:
        """Goes up by the same with every row, so that only one and two are measured."""
        one, two = (self._rows(count, checkpoint) for count in (1, 2))
        return one.map(lambda a, b: a + (rows - 1) * (b - a), two)

    def _rows(self, rows: int, checkpoint: bool) -> Taken:
        config = self.config
        if (rows, checkpoint) not in self.found:
            recipe = recipe_of(config, checkpoint=checkpoint)
            self.found[rows, checkpoint] = stack_step(
                config.model, rows, config.data.seq_len, recipe
            )
        return self.found[rows, checkpoint]

    def loss(self, tokens: int, recipe: Recipe) -> Taken:
        one, two = (
            loss_step(self.config.model.dim, self.vocab, count, recipe._replace(checkpoint=False))
            for count in (SMALLEST, 2 * SMALLEST)
        )
        return one.map(lambda a, b: a + (tokens / SMALLEST - 1) * (b - a), two)


@cache
def loss_step(width: int, vocab: int, tokens: int, recipe: Recipe) -> Taken:
    return taken(loss_of(width, vocab, tokens, recipe))


def loss_of(width: int, vocab: int, tokens: int, recipe: Recipe) -> Forward:
    """Output layer and loss, from hidden states that are there."""
    hidden = torch.randn(1, tokens, width, dtype=recipe.dtype, requires_grad=True)
    weight = torch.randn(vocab, width, dtype=recipe.dtype, requires_grad=True)
    targets, mask = torch.zeros(1, tokens, dtype=torch.long), torch.ones(1, tokens).bool()

    def forward() -> tuple[Tensor, Any]:
        with autocast(recipe):
            logits = F.linear(hidden, weight)
            # They are held as long as the loss.
            return next_token_loss(logits, targets, mask), logits

    return forward


def loss_seconds(planner: Planner, recipe: Recipe) -> tuple[float, float]:
    """Of output layer and loss for a token, and of the optimiser for all parameters."""
    forward = loss_of(planner.config.model.dim, planner.vocab, 8 * SMALLEST, recipe)
    # The first is not timed: libraries begin in it.
    loss = min([seconds(forward) for _ in range(TRIES + 1)][1:]) / (8 * SMALLEST)
    weight = torch.zeros(ADAM, dtype=recipe.dtype, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    optimiser = torch.optim.AdamW([weight])
    times = []
    for _ in range(TRIES + 1):
        begun = time.perf_counter()
        optimiser.step()
        times.append(time.perf_counter() - begun)
    return loss, min(times[1:]) * sum(planner.parameters) / ADAM
