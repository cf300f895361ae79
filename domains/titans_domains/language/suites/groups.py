"""Multiplication tables of finite groups; element 0 is the identity."""

from collections.abc import Callable
from functools import cache
from itertools import permutations

import numpy as np
import numpy.typing as npt

Table = npt.NDArray[np.int64]
"""[n, n]: the product of a row's element and a column's, in this order."""


def cyclic(n: int) -> Table:
    """The numbers below n under addition."""
    return np.add.outer(np.arange(n), np.arange(n)) % n


def permuting(n: int, *, even: bool = False) -> Table:
    """The permutations of n things, or the even ones, in lexicographic order; a product is the left one
    and then the right one."""
    elements = [p for p in permutations(range(n)) if not even or not inversions(p) % 2]
    number = {p: i for i, p in enumerate(elements)}
    return np.array(
        [[number[tuple(right[i] for i in left)] for right in elements] for left in elements]
    )


def inversions(p: tuple[int, ...]) -> int:
    return sum(a > b for i, a in enumerate(p) for b in p[i + 1 :])


def together(left: Table, right: Table) -> Table:
    """The direct product: pairs of elements, the right one's number running faster."""
    n = len(right)
    pairs = n * left[:, None, :, None] + right[None, :, None, :]
    return pairs.reshape(len(left) * n, -1)


GROUPS: dict[str, Callable[[], Table]] = {
    "S5": lambda: permuting(5),
    "A5": lambda: permuting(5, even=True),
    "A4xZ5": lambda: together(permuting(4, even=True), cyclic(5)),
    "Z60": lambda: cyclic(60),
}


@cache
def product_table(name: str) -> Table:
    if name not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(GROUPS)}: got {name!r}.")
    table = GROUPS[name]()
    # One array serves all who ask.
    table.setflags(write=False)
    return table
