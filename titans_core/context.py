"""Memory as context (MAC): attention by segments that also sees what the memory recalls.

B batch, T time, P tokens of a piece (a segment, or the part of one that a call holds), S cached
tokens, R retrieved tokens, H memory heads, K heads of keys and values, D width of a head.
Source: arXiv 2501.00663, eq. 21-25; `docs/choices.md` says what was changed so that no token sees
what a later one asked.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core.attend import EMPTY, Queries, attend
from titans_core.attention import AttentionConfig, Heads
from titans_core.checks import check_call, check_state, fingerprint, frozen_reset, pattern_of
from titans_core.convolution import CausalConvolution, last_written
from titans_core.hybrids import HybridConfig, Norm, check_segment
from titans_core.memory import (
    MemoryConfig,
    NeuralMemoryState,
    Recall,
    persistent_tokens,
    unit_length,
)
from titans_core.pieces import Piece, pieces_of, rejoined
from titans_kernels import memory_read
from titans_kernels.memory_update.types import Weights, rows_where


class MemoryAsContextState(NamedTuple):
    memory: NeuralMemoryState  # it reads what attention gives out
    segment_memory: Weights  # as it was when the segment began
    position: Int[Tensor, " B"]  # tokens since the document began
    keys: Float[Tensor, "B S K D"]  # not turned: places count from the segment's start
    values: Float[Tensor, "B S K D"]
    at: Int[Tensor, "B S"]  # negative in the segment before; EMPTY where there is none
    retrieved_keys: Float[Tensor, "B R K D"]
    retrieved_values: Float[Tensor, "B R K D"]
    asked: Float[Tensor, "B R H D"] | None  # retrieve=previous: the last queries for the memory
    query_tail: Float[Tensor, "B Q dim"] | None
    conv_tail: Float[Tensor, "B Q C"] | None
    settings: str  # fingerprint of the mixer's configuration

    @property
    def cached(self) -> tuple[str, ...]:
        """The fields that hold a place for each cached token."""
        retrieved = () if self.asked is not None else ("retrieved_keys", "retrieved_values")
        return ("keys", "values", "at", *retrieved)


class MemoryAsContext(nn.Module):
    """Maps [B, T, dim] to [B, T, dim].

    A token attends to persistent tokens, to what the memory of its segment's start recalls, and to
    its segment up to itself. What attention gives out is written to the memory token by token, and
    asks it; both together are the output.
    """

    no_decay = ("persistent", "first_asked")

    def __init__(
        self, dim: int, memory: MemoryConfig, attention: AttentionConfig, hybrid: HybridConfig
    ) -> None:
        super().__init__()
        check_segment(memory, hybrid)
        self.config, self.settings = hybrid, fingerprint(memory, attention, hybrid)
        self.persistent = persistent_tokens(hybrid.num_persistent, dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.query_conv = CausalConvolution(dim, memory.conv_size) if memory.conv_size else None
        self.heads = Heads(dim, attention)
        self.recall = Recall(dim, memory, self.settings)
        self.first_asked: nn.Parameter | None = None
        if hybrid.retrieve == "previous":
            self.first_asked = nn.Parameter(torch.randn(hybrid.num_retrieved, *self.recall.shape))
        self.retrieved_norm = Norm(dim)
        self.attention_norm = Norm(dim)
        self.recall_norm = Norm(dim)
        self.out = nn.Linear(dim, dim, bias=False)
        self._pattern = pattern_of(self.fresh_state(1))

    def fresh_state(self, batch: int) -> MemoryAsContextState:
        memory = self.recall.fresh_state(batch)
        none = self.heads.no_keys(batch)
        position = torch.zeros(batch, dtype=torch.long, device=none.device)
        retrieved, asked = none, None
        if self.first_asked is not None:
            asked = unit_length(self.first_asked).expand(batch, -1, -1, -1)
            retrieved = none.new_zeros(batch, len(self.first_asked), *none.shape[2:])
        tail = None
        if self.query_conv is not None:
            tail = self.query_conv.fresh_tail(batch, self.query.weight)
        return MemoryAsContextState(
            memory, memory.memory.memory, position,
            none, none, position[:, None][:, :0], retrieved, retrieved,
            asked, tail, self.heads.fresh_tail(batch), self.settings,
        )  # fmt: skip

    def restart_memory(self, state: MemoryAsContextState) -> MemoryAsContextState:
        """The state with memory, surprise and write position as before the first token."""
        fresh = self.recall.fresh_memory(len(state.position))
        return state._replace(
            memory=state.memory._replace(memory=fresh), segment_memory=fresh.memory
        )

    def restart_caches(self, state: MemoryAsContextState) -> MemoryAsContextState:
        """The state with convolutions and attention as before the first token; the memory goes on.

        In the middle of a segment the place in it stays and the memory of its start too: the segment
        goes on as if what it has read so far were out of sight. With `retrieve="previous"` it sees
        what that memory answers to the learned queries, as a first segment does.
        """
        fresh = self.fresh_state(len(state.position))
        restarted = fresh._replace(
            memory=state.memory._replace(conv_tail=fresh.memory.conv_tail),
            segment_memory=state.segment_memory,
            position=state.position,
        )
        if restarted.asked is None:
            return restarted
        k, v = self._recalled(restarted.asked, restarted)
        inside = (state.position % self.config.segment_len != 0)[:, None, None, None]
        return restarted._replace(
            retrieved_keys=k.masked_fill(~inside, 0), retrieved_values=v.masked_fill(~inside, 0)
        )

    def forward(
        self,
        x: Float[Tensor, "B T dim"],
        state: MemoryAsContextState | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        reset: Bool[Tensor, "B T"] | None = None,
        write: bool = True,
    ) -> tuple[Float[Tensor, "B T dim"], MemoryAsContextState]:
        """Outputs and the state after them. `write=False` reads the memory as it is (frozen)."""
        check_call(x, self.out.weight, mask, reset)
        if state is None:
            state = self.fresh_state(len(x))
        else:
            most = self.config.segment_len - 1 + self.config.num_previous
            check_state(state, self._pattern, x, most)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], 0)
        if x.shape[1] == 0:
            return x, state
        outputs, places = [], []
        for piece in pieces_of(x, state.position, mask, reset, self.config.segment_len):
            y, state = self._piece(piece, state, write)
            outputs.append(y)
            if piece.place is not None:
                places.append(piece.place)
        return rejoined(outputs, places, x.shape[1]), state

    def _piece(
        self, piece: Piece, state: MemoryAsContextState, write: bool
    ) -> tuple[Float[Tensor, "B P dim"], MemoryAsContextState]:
        x, mask, reset, _ = piece
        if reset is not None and bool(reset.any()):
            if not write:
                raise frozen_reset()
            state = self._begin_documents(state, reset[:, 0])
        phase = state.position % self.config.segment_len
        written = x.new_full((len(x),), x.shape[1], dtype=torch.long)
        if mask is not None:
            written = mask.sum(1)
        opens = (phase == 0) & (written > 0)
        segment = rows_where(opens, state.memory.memory.memory, state.segment_memory)
        state = state._replace(segment_memory=segment)
        at = phase[:, None] + torch.arange(x.shape[1], device=x.device)
        y, state = self._attend(x, state, at, mask, reset, opens)
        y = self.attention_norm(y)
        f, memory = self.recall(y, state.memory, mask=mask, reset=reset, write=write)
        y = self.out(y * self.recall_norm(f))
        return y, self._close(state._replace(memory=memory), written)

    def _begin_documents(
        self, state: MemoryAsContextState, fresh: Bool[Tensor, " B"]
    ) -> MemoryAsContextState:
        """Rows as before their first token, but for what convolutions and memory restore by themselves."""
        start = self.fresh_state(len(fresh))
        memory = state.memory.memory
        memory = memory._replace(
            memory=rows_where(fresh, start.memory.memory.memory, memory.memory)
        )
        asked, new = state.asked, fresh[:, None, None, None]
        if asked is not None:
            assert start.asked is not None
            asked = torch.where(new, start.asked, asked)
        return state._replace(
            memory=state.memory._replace(memory=memory),
            segment_memory=rows_where(fresh, start.segment_memory, state.segment_memory),
            position=state.position.where(~fresh, 0),
            at=state.at.where(~fresh[:, None], EMPTY),
            retrieved_keys=state.retrieved_keys.masked_fill(new, 0),
            retrieved_values=state.retrieved_values.masked_fill(new, 0),
            asked=asked,
        )

    def _attend(
        self,
        x: Float[Tensor, "B P dim"],
        state: MemoryAsContextState,
        at: Int[Tensor, "B P"],
        mask: Bool[Tensor, "B P"] | None,
        reset: Bool[Tensor, "B P"] | None,
        opens: Bool[Tensor, " B"],
    ) -> tuple[Float[Tensor, "B P dim"], MemoryAsContextState]:
        """Attention over persistent tokens, retrieved ones, and the segment up to each token."""
        heads, previous = self.heads, self.config.num_previous
        q, k, v, conv_tail = heads(x, state.conv_tail, mask, reset)
        keys, values = torch.cat([state.keys, k], 1), torch.cat([state.values, v], 1)
        key_at = torch.cat([state.at, at if mask is None else at.where(mask, EMPTY)], 1)
        state, retrieved_at = self._retrieve(x, state, key_at, mask, reset, opens)
        # A token itself is seen, even if it is padding: a softmax over nothing is NaN.
        own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        own = F.pad(own, (keys.shape[1] - x.shape[1], 0))
        seen = (key_at[:, None] <= at[..., None]) & (key_at >= -previous)[:, None] | own
        recalled = retrieved_at[:, None] <= at[..., None]
        if state.asked is None:
            recalled = recalled & (retrieved_at >= 0)[:, None]
        lowest = -self.config.segment_len
        y = attend(
            Queries(heads.turn(q, at), q),
            torch.cat(
                [
                    heads.turn(state.retrieved_keys, retrieved_at.clamp_min(lowest)),
                    heads.turn(keys, key_at.clamp_min(lowest)),
                ],
                1,
            ),
            torch.cat([state.retrieved_values, values], 1),
            torch.cat([recalled, seen], 2),
            None if self.persistent is None else heads.keys_values(self.persistent),
        )
        state = state._replace(keys=keys, values=values, at=key_at, conv_tail=conv_tail)
        return y.flatten(2), state

    def _retrieve(
        self,
        x: Float[Tensor, "B P dim"],
        state: MemoryAsContextState,
        key_at: Int[Tensor, "B S"],
        mask: Bool[Tensor, "B P"] | None,
        reset: Bool[Tensor, "B P"] | None,
        opens: Bool[Tensor, " B"],
    ) -> tuple[MemoryAsContextState, Int[Tensor, "B R"]]:
        """Asks the memory of the segment's start; where in the segment the answers stand."""
        asks, tail = self.query(x), state.query_tail
        if self.query_conv is not None and tail is not None:
            asks, tail = self.query_conv(asks, tail, mask=mask, reset=reset)
        asks = unit_length(F.silu(asks).unflatten(-1, self.recall.shape))
        state = state._replace(query_tail=tail)
        if state.asked is None:
            k, v = self._recalled(asks, state)
            return state._replace(
                retrieved_keys=torch.cat([state.retrieved_keys, k], 1),
                retrieved_values=torch.cat([state.retrieved_values, v], 1),
            ), key_at
        asked = state.asked
        count = asked.shape[1]
        if bool(opens.any()):
            k, v = self._recalled(asked.to(asks.dtype), state)
            new = opens[:, None, None, None]
            state = state._replace(
                retrieved_keys=torch.where(new, k, state.retrieved_keys),
                retrieved_values=torch.where(new, v, state.retrieved_values),
            )
        asked = last_written(torch.cat([asked, asks], 1), count, mask)
        places = torch.arange(-count, 0, device=x.device).expand(len(x), -1)
        return state._replace(asked=asked), places

    def _recalled(
        self, asks: Float[Tensor, "B R H D"], state: MemoryAsContextState
    ) -> tuple[Tensor, Tensor]:
        """Keys and values [B, R, K, D] of what the memory of the segment's start answers."""
        recall = self.recall
        h = memory_read(
            asks,
            state.memory.memory._replace(memory=state.segment_memory),
            tuple(recall.initial),
            rule=recall.rule,
            norm=(recall.norm_gain, recall.norm_bias),
        )
        return self.heads.keys_values(self.retrieved_norm(h.flatten(2)))

    def _close(
        self, state: MemoryAsContextState, written: Int[Tensor, " B"]
    ) -> MemoryAsContextState:
        """The state after a piece: of a segment that is full, only what the next one needs."""
        size = self.config.segment_len
        position = state.position + written
        full = (position % size == 0) & (written > 0)
        at = torch.where(full[:, None], state.at - size, state.at)
        at = at.where(at >= -self.config.num_previous, EMPTY)
        stale = full[:, None, None, None]
        keep = int((at != EMPTY).sum(1).max())
        order = (at != EMPTY).sort(dim=1, stable=True).indices[:, at.shape[1] - keep :]
        rows, at = order[..., None, None], at.gather(1, order)

        def kept(x: Tensor) -> Tensor:
            return x.take_along_dim(rows, 1).masked_fill((at == EMPTY)[..., None, None], 0)

        retrieved_keys, retrieved_values = state.retrieved_keys, state.retrieved_values
        if state.asked is None:
            retrieved_keys, retrieved_values = kept(retrieved_keys), kept(retrieved_values)
        return state._replace(
            segment_memory=rows_where(full, state.memory.memory.memory, state.segment_memory),
            position=position,
            keys=kept(state.keys), values=kept(state.values), at=at,
            retrieved_keys=retrieved_keys.masked_fill(stale, 0),
            retrieved_values=retrieved_values.masked_fill(stale, 0),
        )  # fmt: skip
