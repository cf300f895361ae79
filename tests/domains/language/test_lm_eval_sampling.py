"""What a task of lm-eval says of generation, in whichever of its words."""

from typing import Any

import pytest

from titans_domains.language.lm_eval_sampling import Sampling, sampling_of


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, Sampling([], 256, 0.0, 1.0)),
        ({"until": "\n", "max_gen_toks": 3}, Sampling([b"\n"], 3, 0.0, 1.0)),
        ({"until": ["ö", ""], "max_new_tokens": "5"}, Sampling(["ö".encode()], 5, 0.0, 1.0)),
        ({"max_tokens": 6, "max_gen_toks": 7}, Sampling([], 7, 0.0, 1.0)),
        ({"temperature": 0.5, "top_p": 0.9}, Sampling([], 256, 0.5, 0.9)),
        ({"temperature": 0.5, "do_sample": False}, Sampling([], 256, 0.0, 1.0)),
        ({"do_sample": True}, Sampling([], 256, 1.0, 1.0)),
    ],
)
def test_settings_are_read(settings: dict[str, Any], wanted: Sampling) -> None:
    assert sampling_of(settings) == wanted


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"num_beams": 2}, "generation_kwargs must be among until, .* got num_beams. Leave it out"),
        ({"temperature": -1}, "temperature must be 0"),
        ({"do_sample": True, "top_p": 0}, "top_p must be above 0"),
    ],
)
def test_what_is_not_done_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sampling_of(settings)
