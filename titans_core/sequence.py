"""One document over the ranks of a process group: each holds a share of its time.

B batch, T time, dim width of the model.

Layer by layer a rank takes the layer's state from the rank before it, runs its share, and sends the state
on, so that ranks work at once on different layers: of L layers over R ranks, each rank works L steps of
L + R - 1. In the backward pass gradients of states go the other way. Outputs, states and gradients are
those of one process; a rank holds the activations of its share alone.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from titans_core.backbone import Backbone
from titans_core.checks import check_call
from titans_core.state import detach, join, replace_tensors, take_row
from titans_core.wire import Wire

Group = dist.ProcessGroup | None
"""None for all processes."""


def share_of(time: int, *, grid: int, group: Group = None) -> slice:
    """The tokens of a row of `time` that this rank holds: about as many as any, from a multiple of `grid`.

    With `grid=backbone.config.grid`, a document that may begin at a token of the row may do so in a share.
    """
    steps, ranks, rank = -(-time // grid), dist.get_world_size(group), dist.get_rank(group)
    first, last = (min(r * steps // ranks * grid, time) for r in (rank, rank + 1))
    return slice(first, last)


def forward_share(
    backbone: Backbone,
    x: Float[Tensor, "B T dim"],
    state: tuple[Any, ...] | None = None,
    *,
    group: Group = None,
    mask: Bool[Tensor, "B T"] | None = None,
    reset: Bool[Tensor, "B T"] | None = None,
    write: bool = True,
    micro_batches: int = 1,
) -> tuple[Float[Tensor, "B T dim"], tuple[Any, ...] | None]:
    """Hidden states of this rank's share, and on the last rank the state after the document (else None).

    `x`, `mask` and `reset` are the share's, and `state`, from which the document is read on, is for the
    first rank alone. All ranks make this call, and where one goes backward through its hidden states,
    all do; each then has its share's part of the parameters' gradients (`sum_gradients`). Cut into M
    `micro_batches` of rows, a rank works M L steps of M L + R - 1.

    A rank that has ended, or does not answer within the group's timeout, is a ConnectionError of the
    ranks beside it.
    """
    wire = Wire(group, x.device)
    _check(backbone, x, state, wire, micro_batches)
    check_call(x, backbone.norm.weight, mask, reset)
    if mask is not None:
        x = x.masked_fill(~mask[..., None], 0)
    if wire.is_first:
        state = backbone.begin(state, len(x))
    wave = _Wave(backbone, wire, write)
    outputs, states = [], []
    for rows, given in _cut(state, len(x), micro_batches):
        flags = {
            "mask": None if mask is None else mask[rows],
            "reset": None if reset is None else reset[rows],
        }
        y, after = wave.run(x[rows], given, rows, flags)
        outputs.append(y)
        states.append(after)
    wire.flush()
    y = outputs[0] if micro_batches == 1 else torch.cat(outputs)
    if not wire.is_last:
        return backbone.norm(y), None
    return backbone.norm(y), states[0] if micro_batches == 1 else join(states)


def hand_back(
    backbone: Backbone, state: tuple[Any, ...] | None, *, group: Group = None
) -> tuple[Any, ...] | None:
    """On the first rank, detached, the state that the last one passes; None on all others.

    For the next part of a document: all ranks call it, with what `forward_share` gave them (on the last,
    what `put_down` made of it, for training). No rank may have a backward pass to do that another has done.
    """
    wire = Wire(group, backbone.norm.weight.device)
    if wire.is_last and state is None:
        raise ValueError(
            "state must be what the last rank was given back: got None. Pass what forward_share gave it."
        )
    if wire.size == 1:
        return detach(state)
    if wire.is_last:
        wire.send_state(detach(state), 0, {"hand": "back"}, 0)
        wire.flush()
    if not wire.is_first:
        return None
    with torch.no_grad():
        like = backbone.fresh_state(1)
    return wire.receive_state(like, wire.size - 1, {"hand": "back"}, 0)[0]


def sum_gradients(parameters: Iterable[nn.Parameter], *, group: Group = None) -> None:
    """Adds up the gradients of all ranks' shares; each rank has the sum.

    A parameter of which no rank has a gradient keeps none.
    """
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return
    found = torch.tensor([p.grad is not None for p in trained], device=trained[0].device).int()
    dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
    for p, has in zip(trained, found.tolist(), strict=True):
        if has:
            # What only a document's start needs has no gradient where none begins.
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            dist.all_reduce(p.grad, group=group)


def _cut(
    state: tuple[Any, ...] | None, batch: int, count: int
) -> Iterator[tuple[slice, tuple[Any, ...] | None]]:
    """The rows of each micro-batch, and of the state theirs."""
    if count == 1:
        yield slice(0, batch), state
        return
    for first, last in pairwise(part * batch // count for part in range(count + 1)):
        rows = [take_row(state, row) for row in range(first, last)] if state is not None else []
        yield slice(first, last), join(rows) if rows else None


def _check(backbone: Backbone, x: Tensor, state: Any, wire: Wire, micro_batches: int) -> None:
    config = backbone.config
    if backbone.recurrent:
        raise ValueError(
            f"mixer must be one of layers to be shared over time: got {config.mixer!r}, a memory over the "
            "whole stack, whose segments follow one another. Give rows to the ranks instead."
        )
    if not config.bounded:
        raise ValueError(
            "attention.window must be set where a document is shared over time: without it the state that "
            "goes from rank to rank is all that was read, and saves nothing."
        )
    if state is not None and not wire.is_first:
        raise ValueError(
            f"state must be None on rank {wire.rank}, which is given it by the rank before: pass it on "
            "rank 0."
        )
    if not 1 <= micro_batches <= max(len(x), 1):
        raise ValueError(
            f"micro_batches must be between 1 and the number of rows, {len(x)}: got {micro_batches}."
        )


class _Wave:
    """One call: what its layers take from the rank before, and give to the rank behind."""

    def __init__(self, backbone: Backbone, wire: Wire, write: bool) -> None:
        self.backbone, self.wire, self.write = backbone, wire, write
        self.tag = 0
        self.like: tuple[Any, ...] = ()
        if not wire.is_first:
            with torch.no_grad():
                self.like = backbone.fresh_state(1)

    def run(
        self, x: Tensor, state: tuple[Any, ...] | None, rows: slice, flags: dict[str, Any]
    ) -> tuple[Tensor, tuple[Any, ...]]:
        """Some rows through all layers; the state after them is whole on the last rank alone."""
        after = []
        for layer, block in enumerate(self.backbone.blocks):
            call = {
                "layer": layer, "rows": [rows.start, rows.stop], "write": self.write,
                "grad": torch.is_grad_enabled(),
            }  # fmt: skip
            if state is None:
                x, part = self._take(x, layer, call)
            else:
                part = state[layer]
            x, part = self.backbone.through(block, x, part, write=self.write, **flags)
            if self.wire.is_last:
                after.append(part)
            else:
                x = self._give(x, part, call)
            self.tag += 1
        return x, tuple(after)

    def _take(self, x: Tensor, layer: int, call: dict[str, Any]) -> tuple[Tensor, Any]:
        source = self.wire.rank - 1
        part, wanting = self.wire.receive_state(self.like[layer], source, call, self.tag)
        if not wanting:
            return x, part
        if not x.requires_grad:
            # The way back to the rank before goes through x.
            x = x.detach().requires_grad_()
        self.wire.owed += 1
        x, *tensors = _Taken.apply(x, self.wire, self.tag, *wanting.values())
        return x, replace_tensors(part, dict(zip(wanting, tensors, strict=True)))

    def _give(self, x: Tensor, part: Any, call: dict[str, Any]) -> Tensor:
        wanting = self.wire.send_state(part, self.wire.rank + 1, call, self.tag)
        return _Given.apply(x, self.wire, self.tag, *wanting) if wanting else x


class _Taken(torch.autograd.Function):
    """x and a state's tensors as they are; backward, the tensors' gradients go to the rank before.

    Since x goes through here and through `_Given` at every layer, backward passes meet them in the reverse
    order of the forward pass, on every rank.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Wire, tag: int, *tensors: Tensor) -> Any:
        ctx.wire, ctx.tag = wire, tag
        return x, *tensors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *grads: Tensor) -> Any:
        wire = ctx.wire
        wire.send(grads, wire.rank - 1, ctx.tag)
        # After the last one, so that nothing is under way when the backward pass ends.
        if len(wire.sent) == wire.owed:
            wire.flush()
        return grad, None, None, *[None] * len(grads)


class _Given(torch.autograd.Function):
    """x as it is; backward, gradients of the tensors that were sent come from the rank behind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Wire, tag: int, *tensors: Tensor) -> Tensor:
        ctx.wire, ctx.tag = wire, tag
        ctx.like = [(tensor.dtype, [*tensor.shape]) for tensor in tensors]
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = ctx.wire.receive(ctx.like, ctx.wire.rank + 1, ctx.tag)
        return grad, None, None, *grads
