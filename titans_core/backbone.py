"""A stack of blocks from hidden states to hidden states: no tokens, so every domain stands on it.

B batch, T time, dim width of the model.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from titans_core.checks import check_call
from titans_core.mixers import MIXERS, RECURRENCES, BackboneConfig, Mixer
from titans_core.state import detach, named_tensors, replace_tensors


def ffn_dim_of(config: BackboneConfig) -> int:
    """Hidden width of a block's SwiGLU."""
    return config.ffn_dim or -(-8 * config.dim // 96) * 32


class SwiGLU(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "B T dim"]) -> Float[Tensor, "B T dim"]:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    """x + mixer(norm(x)), then x + SwiGLU(norm(x))."""

    def __init__(self, dim: int, mixer: nn.Module, ffn_dim: int) -> None:
        super().__init__()
        self.mixer_norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer
        self.ffn_norm = nn.RMSNorm(dim, eps=1e-5)
        self.ffn = SwiGLU(dim, ffn_dim)

    def forward(self, x: Tensor, state: Any = None, **context: Any) -> tuple[Tensor, Any]:
        y, state = self.mixer(self.mixer_norm(x), state, **context)
        x = x + y
        return x + self.ffn(self.ffn_norm(x)), state


class Backbone(nn.Module):
    """Blocks and a last norm. `mixer` may build any other layer that follows `Mixer`.

    It is given the configuration as the layer has it, in which one mixer of a pattern is left.
    """

    recurrent = False  # a memory over the whole stack, and not layers of their own
    # Blocks keep what goes into them for the backward, and make all else again.
    checkpoint_activations = False

    def __init__(
        self,
        config: BackboneConfig,
        mixer: Callable[[BackboneConfig], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        if config.mixer in RECURRENCES and not self.recurrent:
            raise ValueError(
                f"mixer must be one of layers here: got {config.mixer!r}, which is a memory over the "
                "whole stack. Language models take it."
            )
        self.config = config
        self.compiled: dict[nn.Module, Callable[..., tuple[Tensor, Any]]] = {}
        ffn_dim = ffn_dim_of(config)
        layers = [config.layer(i) for i in range(config.num_layers)]
        self.blocks = nn.ModuleList(
            Block(config.dim, (mixer or MIXERS[layer.mixer])(layer), ffn_dim) for layer in layers
        )
        self.norm = nn.RMSNorm(config.dim, eps=1e-5)
        # What each block adds is scaled down with depth, so that the sum starts at the input's size.
        for name, weight in self.named_parameters():
            if name.endswith(".out.weight"):
                weight.data.div_(math.sqrt(2 * config.num_layers))

    def _mixers(self) -> list[Mixer]:
        return [cast(Block, block).mixer for block in self.blocks]

    def fresh_state(self, batch: int) -> tuple[Any, ...]:
        """The state before the first token, for `batch` rows."""
        return tuple(mixer.fresh_state(batch) for mixer in self._mixers())

    def restart_memory(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """The state with every memory as before the first token; convolutions and caches go on."""
        return tuple(
            mixer.restart_memory(part) for mixer, part in zip(self._mixers(), state, strict=True)
        )

    def restart_caches(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """The state with convolutions and caches as before the first token; every memory goes on."""
        return tuple(
            mixer.restart_caches(part) for mixer, part in zip(self._mixers(), state, strict=True)
        )

    def put_down(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """A state to carry to the next training sequence: detached, memories less their start.

        The start (M_{-1}, persistent tokens) goes on learning in every sequence so, and not only in
        those in which a document begins.
        """
        with torch.no_grad():
            return detach(self._moved(state, -1))

    def take_up(self, state: tuple[Any, ...]) -> tuple[Any, ...]:
        """What was put down, with the start as it is by now."""
        return self._moved(state, 1)

    def _moved(self, state: tuple[Any, ...], sign: int) -> tuple[Any, ...]:
        """The state with its memories moved by their start."""
        ours, start = named_tensors(state), named_tensors(self.restart_memory(state))
        moved = {
            name: x + sign * start[name]
            for name, x in ours.items()
            if start[name] is not x and x.is_floating_point()
        }
        return replace_tensors(state, moved)

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: tuple[Any, ...] | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], tuple[Any, ...]]:
        """Hidden states and the state after them; without a state, a fresh one."""
        check_call(x, self.norm.weight, mask, reset)
        state = self.begin(state, len(x))
        if mask is not None:
            # Norms stand before a mixer sees the mask, and 0 times NaN is NaN in their gradients.
            x = x.masked_fill(~mask[..., None], 0)
        after = []
        for block, part in zip(self.blocks, state, strict=True):
            x, part = self.through(block, x, part, mask=mask, reset=reset, write=write)
            after.append(part)
        return self.norm(x), tuple(after)

    def begin(self, state: tuple[Any, ...] | None, batch: int) -> tuple[Any, ...]:
        """The state, which must have a part for each block, or a fresh one of `batch` rows."""
        if state is None:
            return self.fresh_state(batch)
        if not isinstance(state, tuple):
            raise TypeError(
                f"state must be a tuple with one part for each block: got {type(state).__name__}. "
                "Pass what this model gave back, or None to begin afresh."
            )
        if len(state) != len(self.blocks):
            raise ValueError(
                f"state must have one part for each of {len(self.blocks)} blocks: got {len(state)}. "
                "It belongs to another model."
            )
        return state

    def through(
        self, block: nn.Module, x: Tensor, state: Any, **context: Any
    ) -> tuple[Tensor, Any]:
        """One of the blocks, by checkpoints and compiled where that is asked for."""
        if not torch.is_grad_enabled():
            return block(x, state, **context)
        run = self.compiled.get(block, block)
        if self.checkpoint_activations:
            return checkpoint(run, x, state, use_reentrant=False, **context)
        return run(x, state, **context)

    def compile_blocks(self, backend: str = "inductor") -> None:
        """From here on blocks are compiled where gradients are wanted, their memory's kernel left out.

        Anew for every shape, and for padding and starts of documents: what a step computes does not hang
        on those before it. Names of parameters stay.
        """
        self.compiled = {
            block: torch.compile(block, backend=backend, dynamic=False) for block in self.blocks
        }


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def decay_groups(model: nn.Module, weight_decay: float) -> Iterable[dict[str, Any]]:
    """Parameter groups for an optimiser: no decay on vectors, initial memories, gates and norms."""
    exempt = {
        id(p)
        for module in model.modules()
        for name, p in module.named_parameters()
        if p.ndim < 2 or name.startswith(getattr(module, "no_decay", ()))
    }
    decayed = [p for p in model.parameters() if id(p) not in exempt]
    others = [p for p in model.parameters() if id(p) in exempt]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
