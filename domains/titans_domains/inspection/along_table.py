"""Surprise along a file as a table of numbers, and what is to be said of them.

N tokens that are drawn, U units.
"""

import math
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from titans_domains.inspection.along import MEASURES, Along
from titans_domains.inspection.charts import percent


def written(along: Along) -> Float[ndarray, "N U"] | None:
    """Norm of what each token adds to the running surprise; None where it is a sum of several gradients."""
    if along.run.memory.inner_steps > 1:
        return None
    clamps = np.array(along.run.clamps, np.float32)
    return along.measure("step_size") * np.minimum(along.measure("surprise"), clamps)


def unit_rows(along: Along) -> list[dict[str, Any]]:
    """Means over all tokens that were read, and what surprise has to do with the model's own bits."""
    averages, bits = along.averages, along.all_bits()
    surprise, decay = along.measure("surprise"), averages.mean("decay")
    return [
        {
            "unit": unit.name,
            **{name: float(averages.mean(name)[i]) for name in MEASURES},
            "clamped": float(averages.mean("clamped")[i]),
            "half_life": float(np.log(2) / decay[i]) if decay[i] > 0 else math.inf,
            "with_bits": None if bits is None else rank_correlation(surprise[:, i], bits),
        }
        for i, unit in enumerate(along.run.units)
    ]


def rank_correlation(a: Float[ndarray, " N"], b: Float[ndarray, " N"]) -> float | None:
    """Spearman's, of what is finite in both; None where one of them does not vary."""
    import pandas as pd

    good = np.isfinite(a) & np.isfinite(b)
    ranks = [pd.Series(x[good]).rank().to_numpy() for x in (a, b)]
    if not good.any() or any(np.ptp(x) == 0 for x in ranks):
        return None
    return float(np.corrcoef(*ranks)[0, 1])


def as_table(along: Along) -> dict[str, Any]:
    """All numbers, for scripts."""
    bits, wrote = along.all_bits(), written(along)
    return {
        **along.run.about(),
        "file": str(along.path),
        "tokens": along.tokens,
        "first": along.first,
        "units": [vars(unit) for unit in along.run.units],
        "records": [
            {"name": r.name, "first": r.first, "begin": r.begin, "end": r.end}
            for r in along.records
        ],
        "labels": along.labels,
        "bits": None if bits is None else bits.tolist(),
        **{name: along.measure(name).tolist() for name in MEASURES},
        "written": None if wrote is None else wrote.tolist(),
        "means": unit_rows(along),
        "track": {"size": along.track.size, "surprise": along.track.means().tolist()},
    }


def notes(along: Along) -> list[str]:
    memory, averages = along.run.memory, along.averages
    found = [*along.run.subject.notes]
    found.append(
        f"Gradients of {memory.chunk_size} tokens at a time (a chunk) are taken at one memory: a token that "
        "comes twice within a chunk surprises as much the second time."
    )
    if memory.max_surprise is None:
        found.append("This run clamps no surprise.")
    else:
        share = float(averages.mean("clamped").mean())
        found.append(
            f"Surprise above {memory.max_surprise:g} is clamped to it before it is written; of the surprises "
            f"here {percent(share)} were (column clamped)."
        )
    found.append(
        "A mean over matrices is led by those with large gradients: choose one memory, head and layer "
        "to compare tokens within it."
    )
    found.append(
        "Half-life: tokens after which the forgetting gates, at their mean over the file, leave half of a "
        "write; momentum is left out of account."
    )
    if memory.inner_steps > 1:
        found.append(
            f"Of the {memory.inner_steps} gradients of a token the first one's norm is shown, and not what "
            "they write together."
        )
    if memory.forget_per == "channel":
        found.append("Forgetting is per channel here: what is shown is its mean over channels.")
    if along.bits:
        found.append(
            "With bits: Spearman's rank correlation of the memory's surprise and the model's own bits, over "
            "the tokens that are drawn. It says that they go together, not that one makes the other."
        )
    return found
