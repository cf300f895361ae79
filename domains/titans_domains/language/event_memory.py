"""EM-LLM: an attention model that reads a text of any length and looks up events that are long past.

T time, S cached tokens, N tokens of the sinks, H heads, K heads of keys and values, D width of a head,
V vocabulary, E events. Source: arXiv 2407.09450, section 3; `docs/choices.md` says what differs.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from titans_core import Attention
from titans_core.backbone import Block
from titans_domains.language.event_layer import (
    LayerState,
    Sight,
    attend_to_events,
    fresh_layer,
    with_event,
    without_first,
)
from titans_domains.language.events import EventSettings, refined, surprising
from titans_domains.language.model import LanguageModel, token_nats


class EventState(NamedTuple):
    layers: tuple[LayerState, ...]
    position: int  # tokens read
    first: int  # place of the first cached token
    stored: int  # where the next event begins
    cut: int  # the last surprise that ended an event
    spans: tuple[tuple[int, int], ...]  # first token and end of each event
    begins: Bool[Tensor, " S"]  # cached tokens that surprise
    nats: Float[Tensor, " W"]  # surprise of the last tokens, NaN where there is none
    logits: Float[Tensor, "1 V"] | None  # of the token that comes next


class EventMemory(nn.Module):
    """Reads one text with a trained model whose mixer is attention; no weight is changed or added.

    Inference alone, without gradients. A token sees the last `local` tokens at their places; and, all
    at the distance `local`, the first tokens, those that have left the window without an event, and
    the events that its block was given.
    """

    def __init__(self, model: LanguageModel, settings: EventSettings | None = None) -> None:
        super().__init__()
        config = model.backbone.config
        self.model, self.settings = model, settings or EventSettings()
        if config.mixer != "attention":
            raise ValueError(
                f"model must have attention for its mixer to look up events: got {config.mixer}."
            )
        window = config.attention.window
        if window is not None and window < self.settings.local:
            raise ValueError(
                f"events.local must be at most the model's attention.window = {window}: got "
                f"{self.settings.local}."
            )

    def fresh_state(self) -> EventState:
        """The state before the first token."""
        weight, settings = self.model.embedding.weight, self.settings
        none = torch.zeros(0, dtype=torch.bool, device=weight.device)
        nats = weight.new_full((settings.surprise_window,), torch.nan, dtype=torch.float64)
        layers = tuple(fresh_layer(attention.core.heads) for _, attention in self._blocks())
        return EventState(layers, 0, 0, settings.sinks, settings.sinks, (), none, nats, None)

    def forward(
        self,
        tokens: Int[Tensor, "B T"],
        state: tuple[EventState, ...] | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T V"], tuple[EventState, ...]]:
        """Texts as a model reads them, one after the other; each has a state. Padding gets zeros."""
        batch, time = tokens.shape
        states = (self.fresh_state(),) * batch if state is None else state
        lengths = [time] * batch if mask is None else mask.sum(1).tolist()
        if mask is not None:
            first = torch.arange(time, device=mask.device) < mask.sum(1, keepdim=True)
            if not torch.equal(mask, first):
                raise ValueError(
                    "mask must be of one text in each row, padded on the right: got True behind False."
                )
        logits, after = [], []
        for row, length, ours in zip(tokens, lengths, states, strict=True):
            y, ours = self.read(row[None, :length], ours)
            logits.append(F.pad(y, (0, 0, 0, time - length)))
            after.append(ours)
        return torch.cat(logits), tuple(after)

    @torch.no_grad()
    def read(
        self, tokens: Int[Tensor, "1 T"], state: EventState | None = None
    ) -> tuple[Float[Tensor, "1 T V"], EventState]:
        """Logits of the token after each, and the state after them; cut as you like."""
        if tokens.ndim != 2 or len(tokens) != 1:
            raise ValueError(
                f"tokens must be of one text, shape [1, T]: got {list(tokens.shape)}. Read each text "
                "with a state of its own."
            )
        state = self.fresh_state() if state is None else state
        weight, block = self.model.embedding.weight, self.settings.block
        outputs = [weight.new_zeros(1, 0, len(weight))]
        while tokens.shape[1]:
            offset = state.position % block
            if offset == 0:
                state = self._begin_block(state)
            piece, tokens = tokens[:, : block - offset], tokens[:, block - offset :]
            logits, state = self._piece(piece, state, opens=offset == 0)
            outputs.append(logits)
        return torch.cat(outputs, 1), state

    def _blocks(self) -> list[tuple[Block, Attention]]:
        blocks = [cast(Block, block) for block in self.model.backbone.blocks]
        return [(block, cast(Attention, block.mixer)) for block in blocks]

    def _piece(
        self, tokens: Tensor, state: EventState, opens: bool
    ) -> tuple[Float[Tensor, "1 T V"], EventState]:
        """Tokens of one block."""
        model, layers = self.model, []
        x, sight = model.embedding(tokens), self._sight(state, tokens.shape[1])
        for (block, attention), layer in zip(self._blocks(), state.layers, strict=True):
            y, layer = attend_to_events(
                attention, block.mixer_norm(x), layer, sight, self.settings, opens=opens
            )
            x = x + y
            x = x + block.ffn(block.ffn_norm(x))
            layers.append(layer)
        logits = F.linear(model.backbone.norm(x), model.embedding.weight)
        nats = self._nats(tokens, logits, state.logits)
        begins = surprising(state.nats, nats, self.settings.gamma)
        return logits, state._replace(
            layers=tuple(layers),
            position=state.position + tokens.shape[1],
            begins=torch.cat([state.begins, begins]),
            nats=torch.cat([state.nats, nats])[-len(state.nats) :],
            logits=logits[:, -1].clone(),
        )

    def _nats(self, tokens: Tensor, logits: Tensor, before: Tensor | None) -> Float[Tensor, " T"]:
        """The surprise -log p of each token; NaN of the text's first."""
        rest = token_nats(logits[:, :-1], tokens[:, 1:])
        if before is None:
            return F.pad(rest[0], (1, 0), value=torch.nan)
        return torch.cat([token_nats(before[:, None], tokens[:, :1]), rest], 1)[0]

    def _sight(self, state: EventState, time: int) -> Sight:
        settings, device = self.settings, state.begins.device
        at = torch.arange(state.position, state.position + time, device=device)
        key_at = torch.arange(state.first, state.position + time, device=device)
        distance = at[:, None] - key_at
        sinks = torch.arange(min(settings.sinks, state.position + time), device=device)
        return Sight(
            at[None],
            key_at[None],
            (distance >= 0) & (distance < settings.local),
            (distance >= settings.local) & (key_at >= state.stored),
            at[:, None] - sinks >= settings.local,
        )

    def _begin_block(self, state: EventState) -> EventState:
        """Events of what is out of every later token's window; the cache without what they hold."""
        settings = self.settings
        horizon = state.position - settings.local + 1
        while (found := self._next_event(state, horizon)) is not None:
            end, cut = found
            span = slice(state.stored - state.first, end - state.first)
            layers = tuple(
                with_event(layer, span, settings.representatives) for layer in state.layers
            )
            spans = (*state.spans, (state.stored, end))
            state = state._replace(layers=layers, stored=end, cut=cut, spans=spans)
        first = max(0, min(state.stored, horizon))
        drop = first - state.first
        layers = tuple(without_first(layer, drop) for layer in state.layers)
        return state._replace(layers=layers, first=first, begins=state.begins[drop:].clone())

    def _next_event(self, state: EventState, horizon: int) -> tuple[int, int] | None:
        """Where the next event ends and by which surprise, if all of it is before the horizon."""
        settings, start = self.settings, state.stored
        longest = start + settings.max_event
        least = max(state.cut + 1, start + settings.min_event)
        last = min(longest, horizon + 1)
        begins = state.begins[least - state.first : max(0, last - state.first)]
        if not bool(begins.any()):
            return (longest, state.cut) if longest <= horizon else None
        end = cut = least + int(begins.int().argmax())
        if settings.refine != "off":
            span = slice(start - state.first, end + (end - start) // 2 - state.first)
            keys = torch.cat([layer.keys[0, span].flatten(1) for layer in state.layers], 1)
            end = start + refined(keys, end - start, settings.min_event, settings.refine)
        return end, cut
