"""States between the processes of a group: tensors of any shape and dtype as bytes, a header before them.

A header is JSON and says what call the state belongs to, so that ranks that do not do the same are told
apart. Nothing that is received is run as code.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor

from titans_core.state import named_tensors, replace_tensors, settings_of

Bytes = Int[Tensor, " N"]
"""dtype uint8."""


class Part(NamedTuple):
    """What a header says of one tensor of a state."""

    name: str
    dtype: str
    shape: list[int]
    differentiable: bool


class Wire:
    """Messages between the ranks of a group. Sending does not wait; `flush` does, for all that was sent."""

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        if not dist.is_initialized():
            raise ValueError(
                "A document is shared among the ranks of a process group, and there is none: call "
                "torch.distributed.init_process_group first."
            )
        self.group, self.target = group, device
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("This process must be a rank of the group that it gave: it is none.")
        gloo = dist.get_backend(group) == "gloo"
        self.device = torch.device("cpu") if gloo else device
        self.sent: list[tuple[int, Any]] = []
        self.owed = 0  # gradients that the rank before waits for

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def send_state(self, state: Any, to: int, call: dict[str, Any], tag: int) -> list[Tensor]:
        """Sends a state; its tensors of which the other rank has to give back a gradient."""
        named = named_tensors(state)
        parts = [
            Part(name, str(x.dtype).removeprefix("torch."), [*x.shape], x.requires_grad)
            for name, x in named.items()
        ]
        table = {"call": call, "settings": settings_of(state), "parts": parts}
        header = torch.frombuffer(bytearray(json.dumps(table).encode()), dtype=torch.uint8)
        body = packed([*named.values()])
        sizes = torch.tensor([len(header), len(body)])
        self._send(sizes, to, tag)
        self._send(torch.cat([header.to(body.device), body]), to, tag)
        return [x for x in named.values() if x.requires_grad]

    def receive_state(
        self, like: Any, source: int, call: dict[str, Any], tag: int
    ) -> tuple[Any, dict[str, Tensor]]:
        """A state built as `like` is, and its tensors that want a gradient, by their names."""
        sizes = self._receive(torch.empty(2, dtype=torch.long), source, tag).tolist()
        message = self._receive(torch.empty(sum(sizes), dtype=torch.uint8), source, tag)
        header, body = message.split(sizes)
        table = json.loads(bytes(header.tolist()))
        parts = [Part(*part) for part in table["parts"]]
        ours = {"call": call, "settings": settings_of(like), "names": [*named_tensors(like)]}
        theirs = {**table, "names": [part.name for part in parts]}
        for key, wanted in ours.items():
            if theirs[key] != wanted:
                raise ValueError(
                    f"All ranks must make the same call of the same model: rank {source} sent a state of "
                    f"{key} {theirs[key]}, and rank {self.rank} expected {wanted}."
                )
        tensors = unpacked(body, [(getattr(torch, p.dtype), p.shape) for p in parts], self.target)
        named = {part.name: x for part, x in zip(parts, tensors, strict=True)}
        wanting = {part.name: named[part.name] for part in parts if part.differentiable}
        return replace_tensors(like, named), wanting

    def send(self, tensors: Sequence[Tensor], to: int, tag: int) -> None:
        """Sends tensors of which the other rank knows dtypes and shapes."""
        self._send(packed(tensors), to, tag)

    def receive(
        self, like: Sequence[tuple[torch.dtype, list[int]]], source: int, tag: int
    ) -> list[Tensor]:
        size = sum(dtype.itemsize * torch.Size(shape).numel() for dtype, shape in like)
        body = self._receive(torch.empty(size, dtype=torch.uint8), source, tag)
        return unpacked(body, like, self.target)

    def flush(self) -> None:
        """Waits until all that was sent is there."""
        for to, work in self.sent:
            self._talk(to, work.wait)
        self.sent.clear()

    def _send(self, message: Tensor, to: int, tag: int) -> None:
        message = message.to(self.device)
        work = self._talk(to, lambda: dist.isend(message, group=self.group, tag=tag, group_dst=to))
        self.sent.append((to, work))

    def _receive(self, empty: Tensor, source: int, tag: int) -> Tensor:
        message = empty.to(self.device)
        self._talk(source, lambda: dist.recv(message, group=self.group, tag=tag, group_src=source))
        return message

    def _talk(self, other: int, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except RuntimeError as error:
            raise ConnectionError(
                f"Rank {other} of {self.size} has ended, or did not answer rank {self.rank} within the "
                f"group's timeout: look at its own output, then begin all ranks again."
            ) from error


def packed(tensors: Sequence[Tensor]) -> Bytes:
    """The bytes of all tensors, one after the other."""
    return torch.cat([x.detach().contiguous().view(-1).view(torch.uint8) for x in tensors])


def unpacked(
    body: Bytes, like: Sequence[tuple[torch.dtype, list[int]]], device: torch.device
) -> list[Tensor]:
    """Tensors of these dtypes and shapes, each with a storage of its own."""
    sizes = [dtype.itemsize * torch.Size(shape).numel() for dtype, shape in like]
    return [
        # A copy first: bytes from the middle of a message are not aligned as the dtype needs it.
        part.to(device, copy=True).view(dtype).view(shape)
        for part, (dtype, shape) in zip(body.split(sizes), like, strict=True)
    ]
