"""Recurrence from segment to segment: RMT and ARMT, a stack of attention that reads memory tokens.

B batch, T time, P tokens of a piece (a segment, or the part of one that a call holds), N memory tokens.
Sources: Bulatov et al., "Recurrent Memory Transformer", arXiv 2207.06881 (as a decoder); Rodkin et al.,
"Associative Recurrent Memory Transformer", arXiv 2407.04841.
"""

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core.attention import Attention, AttentionState
from titans_core.backbone import Backbone
from titans_core.checks import check_call, check_state, fingerprint, frozen_reset, pattern_of
from titans_core.memory import persistent_tokens
from titans_core.mixers import RECURRENCES, BackboneConfig
from titans_core.pieces import Piece, pieces_of, rejoined
from titans_core.segment_cache import begun, compact, longer, rows_of
from titans_core.segment_memory import Association, AssociationState

Layers = tuple[AttentionState, ...]
Memory = Tensor | tuple[AssociationState, ...]


class SegmentState(NamedTuple):
    memory: Memory  # RMT: tokens [B, N, dim]; ARMT: one association for each layer
    position: Int[Tensor, " B"]  # tokens since the document began
    layers: Layers  # the segment so far, in which RMT's read tokens stand first
    settings: str  # fingerprint of the configuration


class SegmentRecurrence(Backbone):
    """A stack of attention blocks that sees one segment at a time, and what memory tokens carry on.

    RMT: the segment is read behind the memory tokens, and when it is full they are read again behind
    it; what comes out there is the memory of the next segment. ARMT: learned memory tokens are read
    behind a full segment alone; what comes out of each layer there is written to an association of
    that layer, and every token of later segments adds what its layer's association answers.
    """

    no_decay = ("persistent",)
    recurrent = True

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__(config, lambda config: Attention(config.dim, config.attention))
        kind, segments = config.mixer, config.segments
        self.segment_len = config.hybrid.segment_len
        self.settings = fingerprint(kind, self.segment_len, segments, config.attention)
        self.persistent = persistent_tokens(segments.num_tokens, config.dim)
        self.reads = segments.num_tokens if kind == "rmt" else 0
        self.associations: nn.ModuleList | None = None
        if kind == "armt":
            self.associations = nn.ModuleList(
                Association(config.dim, segments.key_dim) for _ in self.blocks
            )
        self._pattern = pattern_of(self.fresh_state(1))

    def fresh_state(self, batch: int) -> SegmentState:
        layers = self._fresh_layers(batch)
        return SegmentState(self._fresh_memory(batch), layers[0].position, layers, self.settings)

    def restart_memory(self, state: tuple[Any, ...]) -> SegmentState:
        """The state with its memory as before the first token; the open segment goes on.

        What the segment has seen of the memory at its start stays in sight until it ends.
        """
        ours = self._own(state)
        return ours._replace(memory=self._fresh_memory(len(ours.position)))

    def restart_caches(self, state: tuple[Any, ...]) -> SegmentState:
        """The state with an open segment as if what it has read so far were out of sight."""
        ours = self._own(state)
        phase = ours.position % self.segment_len
        ours = self._read_memory(ours._replace(layers=self._fresh_layers(len(phase))), phase > 0)
        place = torch.where(phase > 0, phase + self.reads, 0)
        return ours._replace(layers=tuple(x._replace(position=place) for x in ours.layers))

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: tuple[Any, ...] | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], SegmentState]:
        """Hidden states and the state after them. `write=False` reads the memory as it is (frozen)."""
        check_call(x, self.norm.weight, mask, reset)
        if state is not None:
            check_state(state, self._pattern, x, self.segment_len - 1 + self.reads)
        ours = self.fresh_state(len(x)) if state is None else self._own(state)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        if x.shape[1] == 0:
            return x, ours
        outputs, places = [], []
        for piece in pieces_of(x, ours.position, mask, reset, self.segment_len):
            y, ours = self._piece(piece, ours, write)
            outputs.append(y)
            if piece.place is not None:
                places.append(piece.place)
        return rejoined(outputs, places, x.shape[1]), ours

    def _own(self, state: tuple[Any, ...]) -> SegmentState:
        assert isinstance(state, SegmentState)
        return state

    def _associations(self) -> list[Association]:
        return [cast(Association, layer) for layer in self.associations or ()]

    def _fresh_layers(self, batch: int) -> Layers:
        return tuple(mixer.fresh_state(batch) for mixer in self._mixers())

    def _fresh_memory(self, batch: int) -> Memory:
        if self.associations is not None:
            return tuple(layer.fresh_state(batch) for layer in self._associations())
        assert self.persistent is not None
        return self.persistent.expand(batch, -1, -1)

    def _piece(
        self, piece: Piece, state: SegmentState, write: bool
    ) -> tuple[Float[Tensor, "B P dim"], SegmentState]:
        x, mask, reset, _ = piece
        if reset is not None and bool(reset.any()):
            if not write:
                raise frozen_reset()
            state = self._begin_documents(state, reset[:, 0])
        written = x.new_full((len(x),), x.shape[1], dtype=torch.long)
        if mask is not None:
            written = mask.sum(1)
        state = self._read_memory(state, (state.position % self.segment_len == 0) & (written > 0))
        hidden, layers = self._run(x, state, mask)
        state = state._replace(position=state.position + written, layers=layers)
        full = (state.position % self.segment_len == 0) & (written > 0)
        return self.norm(hidden[-1]), self._close(state, full, write)

    def _begin_documents(self, state: SegmentState, fresh: Bool[Tensor, " B"]) -> SegmentState:
        return state._replace(
            memory=rows_of(fresh, self._fresh_memory(len(fresh)), state.memory),
            position=state.position.masked_fill(fresh, 0),
            layers=self._begun(state.layers, fresh),
        )

    def _begun(self, layers: Layers, rows: Bool[Tensor, " B"]) -> Layers:
        fresh = self._fresh_layers(len(rows))
        return tuple(begun(a, b, rows) for a, b in zip(layers, fresh, strict=True))

    def _run(
        self, x: Float[Tensor, "B P dim"], state: SegmentState, mask: Tensor | None = None
    ) -> tuple[list[Float[Tensor, "B P dim"]], Layers]:
        """What comes out of each block, and the segment with these tokens."""
        hidden, layers = [], []
        for index, (block, layer) in enumerate(zip(self.blocks, state.layers, strict=True)):
            if self.associations is not None:
                part = cast(AssociationState, state.memory[index])
                x = x + self._associations()[index].recall(x, part)
            x, layer = self.through(block, x, layer, mask=mask)
            hidden.append(x)
            layers.append(layer)
        return hidden, tuple(layers)

    def _read_memory(self, state: SegmentState, opens: Bool[Tensor, " B"]) -> SegmentState:
        """RMT: the memory tokens as the first tokens of the rows whose segment opens."""
        if not self.reads or not bool(opens.any()):
            return state
        assert isinstance(state.memory, Tensor)
        fresh = state._replace(layers=self._fresh_layers(len(opens)))
        _, read = self._run(state.memory.to(self.norm.weight.dtype), fresh)
        layers = [
            longer(layer, other, opens) for layer, other in zip(state.layers, read, strict=True)
        ]
        return state._replace(layers=tuple(layers))

    def _close(self, state: SegmentState, full: Bool[Tensor, " B"], write: bool) -> SegmentState:
        """The state after a piece: where a segment is full, its memory is written and it is let go."""
        if bool(full.any()):
            if write:
                state = state._replace(memory=rows_of(full, self._written(state), state.memory))
            state = state._replace(layers=self._begun(state.layers, full))
        return state._replace(layers=tuple(map(compact, state.layers)))

    def _written(self, state: SegmentState) -> Memory:
        """The memory after the memory tokens were read behind a full segment."""
        if self.associations is None:
            assert isinstance(state.memory, Tensor)
            hidden, _ = self._run(state.memory.to(self.norm.weight.dtype), state)
            return self.norm(hidden[-1]).to(state.memory.dtype)
        assert self.persistent is not None
        hidden, _ = self._run(self.persistent.expand(len(state.position), -1, -1), state)
        layers = zip(self._associations(), hidden, state.memory, strict=True)
        return tuple(layer.write(x, part) for layer, x, part in layers)


def build_backbone(config: BackboneConfig) -> Backbone:
    """The stack that a configuration asks for: of layers, or with a memory over all of it."""
    return SegmentRecurrence(config) if config.mixer in RECURRENCES else Backbone(config)
