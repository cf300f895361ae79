"""The settings that the rival systems share, and the widths that follow from them."""

from dataclasses import dataclass
from typing import NamedTuple

from titans_core.checks import check_numbers


@dataclass(frozen=True, kw_only=True)
class SystemConfig:
    """The paper's rivals as mixers. What is None is as the system's authors have it."""

    num_heads: int | None = None  # heads; None for as many as the memory's
    key_expansion: float | None = None  # width of all keys / dim
    value_expansion: float | None = None  # width of all values, or of Mamba's channels / dim
    conv_size: int | None = None  # tokens that the convolutions see; 0 for none
    state_size: int | None = None  # numbers per channel in mamba, mamba2 and longhorn
    num_slots: int | None = None  # gsa; its authors' is the width of a key

    def __post_init__(self) -> None:
        check_numbers(self, "system.")
        for name in ("num_heads", "state_size", "num_slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"system.{name} must be at least 1, or None: got {value}.")
        for name in ("key_expansion", "value_expansion"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(
                    f"system.{name} must be positive and finite, or None: got {value}."
                )
        if self.conv_size is not None and (self.conv_size < 0 or self.conv_size == 1):
            raise ValueError(
                f"system.conv_size must be 0 or at least 2, or None: got {self.conv_size}."
            )


Number = int | float


class Sizes(NamedTuple):
    """Heads, and the widths of one head."""

    heads: int
    key: int
    value: int


def width_of(dim: int, expansion: Number | None, authors: Number, heads: int, name: str) -> int:
    """Width of one of the heads that share dim times the expansion."""
    factor = authors if expansion is None else expansion
    width = round(dim * factor)
    if width != dim * factor or width % heads or width == 0:
        raise ValueError(
            f"dim = {dim} times system.{name} = {factor} must be a multiple of system.num_heads = "
            f"{heads}: got {dim * factor:g}."
        )
    return width // heads


def sizes_of(dim: int, config: SystemConfig, key: Number, value: Number) -> Sizes:
    """Sizes for the authors' expansions `key` and `value`, unless the settings have others."""
    heads = config.num_heads
    assert heads is not None
    return Sizes(
        heads,
        width_of(dim, config.key_expansion, key, heads, "key_expansion"),
        width_of(dim, config.value_expansion, value, heads, "value_expansion"),
    )


def authors_or(value: int | None, authors: int) -> int:
    return authors if value is None else value
