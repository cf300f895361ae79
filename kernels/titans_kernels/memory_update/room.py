"""Memory that is used over and over."""

from torch import Tensor


class Room:
    """Tensors by name, made once: fresh memory costs more to touch first than to compute in."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.made: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """A contiguous tensor with anything in it; the one taken before by this name ends."""
        size = 1
        for extent in shape:
            size *= extent
        made = self.made.get(name)
        if made is None or made.numel() < size:
            made = self.made[name] = self.like.new_empty(size)
        return made[:size].view(shape)
