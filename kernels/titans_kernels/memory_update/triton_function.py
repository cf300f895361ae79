"""The walk's kernels as one autograd function: segment by segment forward, and back.

N chunks, R rows times heads, H heads, C tokens in a chunk, D width of a head, E hidden width, L layers.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titans_kernels.memory_update.call import Layout
from titans_kernels.memory_update.network import layer_norm
from titans_kernels.memory_update.triton_backward import walk_backward
from titans_kernels.memory_update.triton_forward import walk_forward
from titans_kernels.memory_update.triton_launch import Sizes, launch, precision, segments
from titans_kernels.memory_update.triton_read import read_backward, read_forward
from titans_kernels.memory_update.types import UpdateRule

Pool = dict[str, Any]
"""What the kernels ask for by name."""


class Given(NamedTuple):
    """The tensors that are differentiated: first those of all chunks."""

    q: Tensor  # [N, R, C, D]
    k: Tensor
    given: (
        Tensor  # the loss's derivative by the normed sum, without what `slope` times that sum adds
    )
    score: Tensor  # G of the first layer times q k^T [N, R, C, C]
    mix: Tensor  # G of the last layer
    coefs: Tensor  # step, c, p, the last rows of G and P [N, R, L, 5, C]
    decay: Tensor  # c, p and m of the last token [N, R, L, 3]
    slope: Tensor  # [H, D]
    state: Tensor  # memory and surprise of every layer in turn [R, 2 L, E, D]
    held: Tensor  # memory at the first chunk's start [R, L, E, D]
    base: Tensor | None  # M_{-1} [H, L, E, D]
    start: Tensor | None  # [H, 2 L, E, D]


STREAMS = Given._fields[:7]


class Call(NamedTuple):
    """What is not differentiated."""

    rule: UpdateRule
    norm: bool
    heads: int
    width: int  # of a head, before it was padded to a tile
    layout: Layout
    last: Tensor  # the last chunk in which a row begins to write, Int32[R]


class Segments:
    """One call's segments: what the kernels are given for each."""

    def __init__(self, call: Call, given: Given, training: bool) -> None:
        self.call, self.given, rule, layout = call, given, call.rule, call.layout
        self.sizes = Sizes.of(
            given.q.shape, given.held.shape[1], given.held.shape[2], call.heads, call.width
        )
        self.spans = segments(self.sizes, given.state, training)
        self.held = not layout.all_open[0]
        self.resets = given.start is not None and any(layout.any_reset[1:])
        self.reset = given.q
        if layout.resets is not None:
            self.reset = layout.resets[..., 0, 0].T.to(torch.int8).contiguous()
        # A kernel never looks at what its settings say is not there.
        absent = dict.fromkeys(("clamps", "squares", "slots", "room", "counters"), given.q)
        self.fixed: Pool = {
            **absent, **self.sizes._asdict(),
            "slope": given.slope, "held": given.held, "last": call.last,
            "base": given.q if given.base is None else given.base,
            "start": given.q if given.start is None else given.start,
            "NORM": call.norm, "GELU": rule.activation == "gelu", "LIMIT": rule.max_surprise or 0.0,
            "BASE": given.base is not None, "T": self.sizes.C, "PRECISION": precision(given.q.dtype),
        }  # fmt: skip

    def pool(self, index: int) -> Pool:
        """What a segment is given."""
        first, last = self.spans[index]
        streams = {name: getattr(self.given, name)[first:last] for name in STREAMS}
        return {
            **self.fixed, **streams,
            "N": last - first, "first": first, "reset": self.reset[first:last],
            "HELD": self.held and first == 0, "RESETS": self.resets,
            **self.meeting(),
        }  # fmt: skip

    def meeting(self) -> Pool:
        """Where the programs of a row meet: a ticket and a count of arrivals are used up by every launch."""
        sizes = self.sizes
        room = (sizes.R, 2 * sizes.SLICES, sizes.C * (sizes.DP + 2))
        counters = torch.zeros(sizes.R + 1, dtype=torch.int32, device=self.given.q.device)
        return {"room": self.given.q.new_empty(room), "counters": counters}

    def walk(self, pool: Pool, state: Tensor, again: bool = False) -> Tensor:
        """The state after a segment; what its keys leave and its chunks' first states go into the pool."""
        new, sizes, chunks = state.new_empty, self.sizes, pool["N"]
        rows, tokens, depth = sizes.R, sizes.C, sizes.DEPTH
        if not again:
            pool["z"], pool["error"] = (new(chunks, rows, tokens, sizes.D) for _ in range(2))
            if pool["LIMIT"]:
                pool["clamps"] = new(chunks, rows, depth, tokens)
                pool["squares"] = new(chunks, rows, 2, tokens)
        pool |= {
            "state": state,
            "after": torch.empty_like(state),
            "slots": new(chunks, *state.shape),
        }
        launch(walk_forward, rows * sizes.SLICES, {**pool, "REPLAY": again})
        after: Tensor = pool["after"]
        return after

    def read(self, pool: Pool) -> Tensor:
        """The queries' last sums of a segment [N, R, C, D]."""
        sums = torch.empty_like(pool["q"][None].expand(self.sizes.SLICES, -1, -1, -1, -1))
        launch(read_forward, pool["N"] * self.sizes.R * self.sizes.SLICES, {**pool, "sums": sums})
        return sums.sum(0)

    def back(self, pool: Pool, dy: Tensor, total: Pool) -> dict[str, Tensor]:
        """Gradients by a segment's streams; by the states before it, and what all share, in `total`."""
        sizes, chunks, new = self.sizes, pool["N"], dy.new_empty
        rows, tokens, depth, slices = sizes.R, sizes.C, sizes.DEPTH, sizes.SLICES
        seen = dy @ pool["error"].mT
        wide = (slices, chunks, rows, tokens)
        pool |= {
            "dy": dy, "pairs": seen * pool["mix"],
            **{name: new(*wide, sizes.D) for name in ("dq", "dk", "d_error")},
            **{name: new(*wide, tokens) for name in ("d_score", "d_mix")},
            "by_coefs": new(slices, chunks, rows, depth, 5, tokens),
            "by_decay": new(slices, chunks, rows, depth, 3),
            "units": new(UNITS if depth == 2 else 1, chunks, rows, tokens, sizes.E),
            "d_given": torch.empty_like(dy), **total, **self.meeting(),
        }  # fmt: skip
        launch(read_backward, chunks * rows * slices, pool)
        launch(walk_backward, rows * slices, pool)
        if self.given.base is not None:
            total["d_base"] += self.base_of_queries(pool)
        return self.finish(pool, seen)

    def base_of_queries(self, pool: Pool) -> Tensor:
        """What a segment's queries owe to M_{-1}: one product over all its tokens [R, L, E, D]."""
        if self.sizes.DEPTH == 1:
            return torch.einsum("nrce,nrcd->red", pool["dy"], pool["q"])[:, None]
        sides = (pool["units"][3], pool["q"]), (pool["units"][2], pool["dy"])
        return torch.stack([torch.einsum("nrce,nrcd->red", a, b) for a, b in sides], 1)

    def finish(self, pool: Pool, seen: Tensor) -> dict[str, Tensor]:
        """Gradients by the streams, from the slices' parts of them."""
        coefs = pool["by_coefs"].sum(0)
        clamp = pool["clamps"] if pool["LIMIT"] else 1.0
        # The weights are minus the step, times the clamp.
        coefs[..., 0, :].mul_(clamp).neg_()
        found = {name: pool[f"d{name}"].sum(0) for name in ("q", "k")}
        found |= {
            "given": pool["d_given"], "score": pool["d_score"].sum(0),
            "coefs": coefs, "decay": pool["by_decay"].sum(0),
        }  # fmt: skip
        if self.sizes.DEPTH == 2:
            weight = -pool["coefs"][:, :, :, 0] * clamp
            found["mix"] = pool["d_mix"].sum(0).mul_(seen).mul_(weight[:, :, 1, None])
        slope = torch.zeros_like(pool["slope"])
        z, d_given = (x[..., : self.call.width] for x in (pool["z"], found["given"]))
        by_row = (d_given * (layer_norm(z)[0] if self.call.norm else z)).sum((0, 2))
        slope[:, : self.call.width] = by_row.unflatten(0, (-1, self.sizes.H)).sum(0)
        found["slope"] = slope
        return found


class Walk(torch.autograd.Function):
    """Keeps what the keys leave, and the states that segments begin with, or of a single one all chunks'."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        whole: Any = (x if x is None else x.contiguous() for x in tensors)
        given = Given(*whole)
        run = Segments(call, given, any(ctx.needs_input_grad))
        state, sums, kept = given.state, torch.empty_like(given.q), []
        held_after = torch.zeros_like(given.held)
        single = len(run.spans) == 1
        for index, (first, last) in enumerate(run.spans):
            pool = run.pool(index) | {"held_after": held_after}
            before, state = state, run.walk(pool, state)
            sums[first:last] = run.read(pool)
            kept.append([pool[n] for n in KEPT] + [pool["slots"] if single else before])
        ctx.call, ctx.kept = call, len(KEPT) + 1
        ctx.save_for_backward(*given, *(x for part in kept for x in part))
        return sums, state, held_after

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, d_state: Tensor, d_held_after: Tensor) -> tuple[Any, ...]:
        count = len(Given._fields)
        given, rest = Given(*ctx.saved_tensors[:count]), ctx.saved_tensors[count:]
        run = Segments(ctx.call, given, training=True)
        sizes, dy = run.sizes, dy.contiguous()
        total: Pool = {"d_held_after": d_held_after.contiguous()}
        for name, like in (("held", given.held), ("base", given.held), ("start", given.state)):
            total[f"d_{name}"] = torch.zeros_like(like)
        found: Pool = {name: torch.empty_like(getattr(given, name)) for name in STREAMS}
        found["slope"] = torch.zeros_like(given.slope)
        if sizes.DEPTH == 1:
            found["mix"] = None
        d_state = d_state.contiguous()
        with torch.autocast(dy.device.type, enabled=False):
            for index in reversed(range(len(run.spans))):
                first, last = run.spans[index]
                pool = run.pool(index)
                *parts, before = rest[index * ctx.kept :][: ctx.kept]
                pool |= dict(zip(KEPT, parts, strict=True))
                if len(run.spans) == 1:
                    pool["slots"] = before
                else:
                    pool["held_after"] = given.held
                    run.walk(pool, before, again=True)
                total |= {"d_after": d_state, "d_state": torch.empty_like(d_state)}
                for name, grad in run.back(pool, dy[first:last], total).items():
                    if name == "slope":
                        found["slope"] += grad
                    else:
                        found[name][first:last] = grad
                d_state = total["d_state"]
        by_head = {n: total[f"d_{n}"].unflatten(0, (-1, sizes.H)).sum(0) for n in ("base", "start")}
        found |= {"state": d_state, "held": total["d_held"], **by_head}
        return None, *(None if x is None else found[n] for n, x in given._asdict().items())


UNITS = 8
"""Tensors [N, R, C, E] that the reading of a segment leaves for the walk back."""

KEPT = ("z", "error", "clamps", "squares")
