"""What the docs state in numbers that can be computed is computed."""

import dataclasses
from pathlib import Path

import torch

from titans_core import PRESETS, count_parameters
from titans_domains.language.model import LanguageModel

CHOICES = (Path(__file__).parents[1] / "docs" / "choices.md").read_text()


def rows_after(heading: str) -> list[list[str]]:
    lines = CHOICES[CHOICES.index(heading) :].splitlines()
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]


def test_the_table_of_sizes_is_that_of_the_presets() -> None:
    (_, *mixers), _, *rows = rows_after("## Sizes")
    assert [name for name, *_ in rows] == list(PRESETS)
    for name, *sizes in rows:
        vocab = 257 if name in ("tiny", "small") else 32_001
        for mixer, size in zip(mixers, sizes, strict=True):
            with torch.device("meta"):
                model = LanguageModel(dataclasses.replace(PRESETS[name], mixer=mixer), vocab)
            assert f"{count_parameters(model) / 1e6:,.2f}M" == size, (name, mixer)
