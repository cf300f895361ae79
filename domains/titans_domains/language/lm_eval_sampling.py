"""How a task of lm-evaluation-harness wants its texts made."""

from typing import Any, NamedTuple

from titans_domains.language.generate import check_sampling

LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""lm-eval's names for the most tokens to make, the first that is given counts."""

USUAL_LIMIT = 256
SAMPLING = ("until", "do_sample", "temperature", "top_p", *LIMITS)


class Sampling(NamedTuple):
    """How to go on from a context."""

    until: list[bytes]  # strings that end the text, and are not of it
    limit: int  # tokens at most
    temperature: float
    top_p: float


def sampling_of(settings: dict[str, Any]) -> Sampling:
    """From the `generation_kwargs` of a task. Greedy, unless it samples or gives a temperature."""
    if odd := sorted(set(settings) - set(SAMPLING)):
        raise ValueError(
            f"generation_kwargs must be among {', '.join(SAMPLING)}: got {', '.join(odd)}. Leave it out."
        )
    sample = settings.get("do_sample")
    temperature = float(settings.get("temperature", 1.0 if sample else 0.0))
    until = settings.get("until") or []
    limits = [int(settings[name]) for name in LIMITS if settings.get(name) is not None]
    found = Sampling(
        until=[stop.encode() for stop in ([until] if isinstance(until, str) else until) if stop],
        limit=limits[0] if limits else USUAL_LIMIT,
        temperature=0.0 if sample is False else temperature,
        top_p=float(settings.get("top_p", 1.0)),
    )
    check_sampling(found.temperature, found.top_p)
    return found
