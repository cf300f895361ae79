"""How much memory tensors take while something runs, and the most of it."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the storages that operations make, and that are let go again.

    Not the workspace inside of an operation, and nothing that was there before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0  # bytes
        self.most = 0
        self.known: set[int] = set()

    def restart(self) -> None:
        """From here on `most` counts anew."""
        self.most = self.now

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, Tensor):
                self._meet(x, 0)
        made = func(*args, **kwargs)
        for x in tree_leaves(made):
            if isinstance(x, Tensor):
                self._meet(x, x.untyped_storage().nbytes())
        return made

    def _meet(self, x: Tensor, size: int) -> None:
        storage: torch.UntypedStorage = x.untyped_storage()
        name = storage._cdata
        if name in self.known:
            return
        self.known.add(name)
        # It lives as long as the memory, whoever else holds that.
        weakref.finalize(storage, self._part, name, size)
        self.now += size
        self.most = max(self.most, self.now)

    def _part(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.now -= size
