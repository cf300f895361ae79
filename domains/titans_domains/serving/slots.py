"""A batch whose rows come and go: each is read on with the others, and never with anything of them.

A row that comes is written over one that is free, in place, since to join a whole batch anew takes as long
as many of its steps. So the batch is this object's alone, and what leaves it is a copy.
"""

from typing import Any

import torch

from titans_core import join
from titans_core.attend import EMPTY, pad_time
from titans_core.state import cache_names, named_tensors, replace_tensors, take_row, trim
from titans_domains.language.model import LanguageModel


class Slots:
    """States of one row each, by keys, in one batch; `write=False` reads with the memory as it is."""

    def __init__(self, model: LanguageModel, *, write: bool = True) -> None:
        self.model, self.write = model, write
        self.fresh = model.backbone.fresh_state(1)
        self.caches = cache_names(self.fresh)
        # What a state may share with the model is no row's.
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.clear()

    def clear(self) -> None:
        self.keys: list[Any] = []  # of each row, None where it is free
        self.state: Any = None

    def __len__(self) -> int:
        return sum(key is not None for key in self.keys)

    def enter(self, key: Any, state: Any) -> None:
        if None not in self.keys:
            self._resize(size_for(len(self.keys) + 1))
        row = self.keys.index(None)
        self._put(row, state)
        self.keys[row] = key
        try:
            self._tidy()
        except BaseException:
            self.keys[row] = None
            raise

    def leave(self, key: Any) -> Any:
        """The state of a row that goes."""
        state = take_row(self.state, self.keys.index(key))
        self.drop(key)
        return state

    def drop(self, key: Any) -> None:
        """Lets a row go whose state nobody wants."""
        row = self.keys.index(key)
        self.keys[row] = None
        if not len(self):
            self.clear()
            return
        # Nothing of it stays, and it takes no part in how long caches are.
        self._put(row, self.fresh)
        size, live = len(self.keys), len(self)
        if (less := size_for(live + max(2, size // 8))) < size:
            self._resize(less)
        self._tidy()

    @torch.no_grad()
    def step(self, tokens: dict[Any, int]) -> dict[Any, torch.Tensor]:
        """Reads a token for each key, and gives each its logits [V]."""
        end = next(iter(tokens.values()))
        ids = [end if key is None else tokens[key] for key in self.keys]
        device = self.model.embedding.weight.device
        batch = torch.tensor(ids, device=device)[:, None]
        logits, self.state = self.model(batch, self.state, write=self.write)
        return {key: logits[row, -1] for row, key in enumerate(self.keys) if key is not None}

    def _resize(self, size: int) -> None:
        """Free rows behind the others, which move together."""
        rows = [row for row, key in enumerate(self.keys) if key is not None]
        free = size - len(rows)
        states = [take_row(self.state, row) for row in rows]
        state = join([*states, *[self.fresh] * free])
        self.keys, self.state = [self.keys[row] for row in rows] + [None] * free, state

    def _put(self, row: int, state: Any) -> None:
        """Writes a state over a row."""
        theirs = named_tensors(state)
        ours = self._own()
        for name in self.caches:
            ours[name], theirs[name] = _as_long(ours[name], theirs[name])
        for name, x in ours.items():
            assert x.dtype == theirs[name].dtype
            x[row].copy_(theirs[name][0])
        self.state = replace_tensors(self.state, ours)

    def _own(self) -> dict[str, torch.Tensor]:
        """The batch's tensors, none of which shares its numbers with another or with the model."""
        seen, own = set(self.weights), named_tensors(self.state)
        for name, x in own.items():
            storage = x.untyped_storage().data_ptr()
            if (storage in seen and x.numel()) or 0 in x.stride():
                own[name] = x = x.contiguous().clone()
            seen.add(x.untyped_storage().data_ptr())
        return own

    def _tidy(self) -> None:
        """Makes caches no longer than the rows in use need, where the free ones were read on as well."""
        if not self.caches:
            return
        for row, key in enumerate(self.keys):
            if key is None:
                self._put(row, self.fresh)
        self.state = trim(self.state)


def size_for(rows: int) -> int:
    """Rows of the batch that holds so many: few sizes, little more than needed."""
    return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 8) * 8


def _as_long(ours: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both caches with empty places in front of the shorter."""
    fill = 0 if ours.is_floating_point() else EMPTY
    longest = max(ours.shape[1], theirs.shape[1])
    found = [
        pad_time(x, longest - x.shape[1], 0, fill) if x.shape[1] < longest else x
        for x in (ours, theirs)
    ]
    return found[0], found[1]
