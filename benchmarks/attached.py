"""bAbI's qa1 beyond a host's own window: the host alone, and with a memory attached to it.

A small Llama is trained from scratch on stories that fit its window, until it answers. Then MAC + MAL is
attached to it and trained on texts of two to four windows, read window by window: facts among sentences of
books in all windows but the last, questions in the last one. Asked is one question at the end of 2 to 16
windows, with every fact outside the last window. Alone, the host sees the last window; chance is the place
that is right most often. `added` trains what was attached, `all` the host as well.

    python benchmarks/attached.py --out benchmarks/results
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from cells import kept
from provenance import command, provenance
from torch import Tensor

from titans_core import (
    AttentionConfig,
    HybridConfig,
    MemoryConfig,
    added_parameters,
    attach,
    count_parameters,
    read,
)
from titans_core.attached.attaching import Train
from titans_domains.language.suites.babilong.problem import Babi
from titans_domains.language.suites.babilong.worlds import ROOMS, Story
from titans_domains.language.suites.haystack import Haystack, weave
from titans_domains.language.suites.problem import IGNORED, Split, random_of

WINDOW = 32
FACTS = 16  # tokens of a host's own story before its questions
ASKED_AT = (2, 4, 8, 16)  # windows
TESTED = 512
KINDS: tuple[Train, ...] = ("added", "all")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    width: int = 64
    layers: int = 2
    attached: tuple[int, ...] = (1,)
    rows: int = 64  # of one window; fewer of more
    host_steps: int = 2400
    steps: int = 800
    lr: float = 3e-3
    scale_lr: float = 1e-2


class Rows:
    """Texts with facts in front and questions behind, and the room asked for after each question mark.

    inputs   < hay  Mary moved to the garden.  hay | hay  Where is Mary? garden  hay
    targets  .  .   .    .     .  .   .     .  .   | .    .     .  garden  .     .
    """

    def __init__(self) -> None:
        self.problem = Babi(task="qa1", words=300)
        self.rooms = [self.problem.label(room) for room in ROOMS]
        self.mark = int(self.problem.encode("?")[0])

    def draw(
        self, rows: int, facts: int, asks: int, split: Split, number: int, *, one: bool = False
    ) -> tuple[Tensor, Tensor]:
        """inputs, targets [rows, facts + asks]; `one` question without its answer ends a row."""
        random = random_of(facts, split, asks, number)
        drawn = [self._row(random, facts, asks, split, one) for _ in range(rows)]
        inputs = torch.from_numpy(np.stack([inputs for inputs, _ in drawn]))
        targets = torch.full_like(inputs, IGNORED)
        if one:
            targets[:, -1] = torch.tensor([answer for _, answer in drawn])
            return inputs, targets
        answered = inputs[:, :-1] == self.mark
        answered &= torch.isin(inputs[:, 1:], torch.tensor(self.rooms))
        answered[:, :facts] = False
        targets[:, :-1][answered] = inputs[:, 1:][answered]
        return inputs, targets

    def _row(
        self, random: np.random.Generator, facts: int, asks: int, split: Split, one: bool
    ) -> tuple[np.ndarray, int]:
        problem, hay = self.problem, self.problem.hays[split]
        story = self._story(random, facts - 1, split)
        before = within(random, hay, facts - 1, self._encoded(story.facts))
        if one:
            asked = self._encoded([story.question])
            behind = [*within(random, hay, asks - len(asked[0]), []), *asked[0]]
        else:
            behind = within(random, hay, asks, self._questions(random, story, asks))
        return np.array([1, *before, *behind], np.int64), problem.label(story.answer)

    def _story(self, random: np.random.Generator, size: int, split: Split) -> Story:
        while True:
            story = self.problem.draws[split](random)
            if sum(map(len, self._encoded(story.facts))) <= size:
                return story

    def _questions(self, random: np.random.Generator, story: Story, size: int) -> list[np.ndarray]:
        """As many questions as fit, some of them again, each with its answer."""
        told = {fact.split()[0]: fact.rstrip(".").split()[-1] for fact in story.facts}
        most = size // len(self._encoded(["Where is Mary? garden"])[0])
        names = random.choice(sorted(told), most)
        return self._encoded(f"Where is {name}? {told[name]}" for name in names)

    def _encoded(self, sentences: Any) -> list[np.ndarray]:
        return [self.problem.encode(sentence + " ") for sentence in sentences]


def within(
    random: np.random.Generator, hay: Haystack, size: int, pieces: list[np.ndarray]
) -> np.ndarray:
    """So many tokens of the books with the pieces, in their order, between sentences."""
    filling, cuts = hay.take(random, size - sum(map(len, pieces)))
    places = np.sort(random.choice(np.append(cuts, len(filling)), len(pieces)))
    return weave(filling, places.tolist(), pieces)


def host(recipe: Recipe, vocab: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab, hidden_size=recipe.width, num_hidden_layers=recipe.layers,
        num_attention_heads=2, intermediate_size=2 * recipe.width, max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        initializer_range=0.15, tie_word_embeddings=True, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def with_memory(model: Any, recipe: Recipe, train: Train) -> Any:
    return attach(
        model,
        "mac+mal",
        recipe.attached,
        memory=MemoryConfig(num_heads=2, max_step_size=0.3),
        attention=AttentionConfig(num_heads=2, conv_size=4),
        hybrid=HybridConfig(num_persistent=4, segment_len=WINDOW),
        train=train,
    )


def optimiser_of(model: Any, recipe: Recipe) -> torch.optim.AdamW:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    scales = [p for name, p in named if name.endswith("titans_memory.scale")]
    others = [p for name, p in named if not name.endswith("titans_memory.scale")]
    groups = [{"params": others, "lr": recipe.lr}, {"params": scales, "lr": recipe.scale_lr}]
    return torch.optim.AdamW(groups, weight_decay=0.01, betas=(0.9, 0.98))


def fit(model: Any, recipe: Recipe, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    optimiser = optimiser_of(model, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda n: min(1, (n + 1) / 50) * (1 - 0.9 * n / steps)
    )
    began, right = time.process_time(), 0.0
    for step in range(1, steps + 1):
        inputs, targets = next(batches)
        asked = targets != IGNORED
        logits = logits_of(model, inputs)[asked]
        optimiser.zero_grad()
        loss = F.cross_entropy(logits, targets[asked])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        right += (logits.argmax(-1) == targets[asked]).float().mean().item() / 50
        if step % 50 == 0:
            spent = time.process_time() - began
            print(
                f"{step}: {loss.item():.3f} {right:.3f} {spent:.0f} s", file=sys.stderr, flush=True
            )
            right = 0.0


def logits_of(model: Any, inputs: Tensor, *, last: bool = False) -> Tensor:
    """Of a host, of its one window; of a host with a memory, of all windows."""
    if inputs.shape[1] > WINDOW:
        return read(model, inputs, window=WINDOW, last=last).logits
    return model(inputs, use_cache=False, logits_to_keep=int(last)).logits


def short(rows: Rows, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Many questions in a row, which are learned sooner, and one question, by turns."""
    for number in range(recipe.host_steps):
        yield rows.draw(recipe.rows, FACTS, WINDOW - FACTS, "train", number, one=number % 2 == 1)


def long(rows: Rows, recipe: Recipe) -> Iterator[tuple[Tensor, Tensor]]:
    """Two windows in the first half, then two to four; every other time one question."""
    for number in range(recipe.steps):
        windows = 2 if number < recipe.steps // 2 else 2 + number // 2 % 3
        facts, count = (windows - 1) * WINDOW, recipe.rows // windows
        yield rows.draw(count, facts, WINDOW, "train", number, one=number % 2 == 1)


@torch.no_grad()
def share_right(model: Any, inputs: Tensor, targets: Tensor) -> float:
    given = torch.cat([logits_of(model, part, last=True)[:, -1] for part in inputs.split(64)])
    return (given.argmax(-1) == targets[:, -1]).float().mean().item()


def host_of(rows: Rows, recipe: Recipe, seed: int) -> dict[str, Any]:
    """A host that answers within its window, and what it answers of longer texts alone."""
    torch.manual_seed(seed)
    model = host(recipe, rows.problem.vocab_size)
    fit(model, recipe, short(rows, recipe), recipe.host_steps)
    own = rows.draw(TESTED, FACTS, WINDOW - FACTS, "test", 0, one=True)
    asked = asked_of(rows)
    return {
        "parameters": count_parameters(model),
        "within its window": share_right(model, *own),
        "alone": {n: share_right(model, x[:, -WINDOW:], y) for n, (x, y) in asked.items()},
        "chance": {n: most_common(y[:, -1]) for n, (_, y) in asked.items()},
        "weights": model.state_dict(),
    }


def attached(
    rows: Rows, recipe: Recipe, seed: int, train: Train, weights: dict[str, Tensor]
) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = host(recipe, rows.problem.vocab_size)
    model.load_state_dict(weights)
    with_memory(model, recipe, train)
    fit(model, recipe, long(rows, recipe), recipe.steps)
    return {
        "parameters": sum(p.numel() for p in added_parameters(model)),
        "right": {n: share_right(model, *pair) for n, pair in asked_of(rows).items()},
    }


def asked_of(rows: Rows) -> dict[int, tuple[Tensor, Tensor]]:
    return {n: rows.draw(TESTED, (n - 1) * WINDOW, WINDOW, "test", 0, one=True) for n in ASKED_AT}


def most_common(labels: Tensor) -> float:
    return labels.unique(return_counts=True)[1].max().item() / len(labels)


def table(found: dict[str, Any]) -> str:
    """Percent right: the mean over the seeds, and the lowest and highest of them."""
    kinds = {
        "chance": [cell["chance"] for cell in found["host"].values()],
        "host alone": [cell["alone"] for cell in found["host"].values()],
        **{
            f"{kind} trained": [cell["right"] for cell in found.get(kind, {}).values()]
            for kind in KINDS
        },
    }
    lines = [f"| windows | {' | '.join(map(str, ASKED_AT))} |", "|---" * (len(ASKED_AT) + 1) + "|"]
    for kind, cells in kinds.items():
        row = []
        for n in map(str, ASKED_AT):
            shares = [100 * cell[n] for cell in cells] or [math.nan]
            row.append(f"{sum(shares) / len(shares):.1f} ({min(shares):.1f}-{max(shares):.1f})")
        lines.append(f"| {kind} | {' | '.join(row)} |")
    own = [f"{100 * cell['within its window']:.1f}" for cell in found["host"].values()]
    return "\n".join([*lines, "", f"hosts within their window: {', '.join(own)}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", nargs="*", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe, rows, path = Recipe(), Rows(), options.out / "attached.json"
    made_of = {"recipe": {**asdict(recipe), "attached": list(recipe.attached)}, "tested": TESTED}
    hosts: dict[int, dict[str, Any]] = {}

    def cell(kind: str, seed: int) -> dict[str, Any]:
        def measure() -> dict[str, Any]:
            if seed not in hosts:
                hosts[seed] = timed(partial(host_of, rows, recipe, seed))
            ours = {name: x for name, x in hosts[seed].items() if name != "weights"}
            if kind != "host":
                weights = hosts[seed]["weights"]
                ours = timed(partial(attached, rows, recipe, seed, kind, weights))
            return dict(json.loads(json.dumps({**ours, "command": command(), **provenance()})))

        return kept(path, kind, str(seed), made_of, measure)

    for seed in range(options.seeds):
        for kind in ["host", *options.train]:
            print(kind, seed, cell(kind, seed), file=sys.stderr, flush=True)
    print(table(json.loads(path.read_text())))


def timed(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    began = time.process_time()
    return {**measure(), "cpu seconds": time.process_time() - began}


if __name__ == "__main__":
    main()
