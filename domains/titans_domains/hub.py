"""Rows of Hugging Face data sets, streamed, with errors of one sentence."""

import os
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

HUB = "hf:"


def hub_parts(source: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT."""
    name, *rest = source.removeprefix(HUB).split(":")
    if not all([name, *rest]) or len(rest) > 2:
        raise ValueError(
            f"A data set must be hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT: got {source!r}."
        )
    return name, rest[0] if len(rest) == 2 else None, rest[-1] if rest else None


def hub_splits(source: str) -> list[str]:
    """The splits of a data set; the one of its name where it names one."""
    name, config, split = hub_parts(source)
    if split is not None:
        return [split]
    datasets = _datasets()
    try:
        return list(datasets.get_dataset_split_names(name, config))
    except Exception as error:  # the hub client raises many unrelated kinds
        raise _unreachable(name, error) from None


def hub_rows(source: str, split: str) -> Iterator[dict[str, Any]]:
    """The rows of one split."""
    name, config, _ = hub_parts(source)
    datasets = _datasets()
    try:
        yield from datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:
        raise _unreachable(name, error) from None


def _datasets() -> Any:
    from huggingface_hub import constants

    try:
        # Through a proxy the hub can be reached where its name means nothing here.
        if not getproxies().keys() & {"http", "https", "all"}:
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        # Offline the hub client takes what it has kept; else it would retry for half a minute.
        os.environ["HF_HUB_OFFLINE"] = constants.HF_HUB_OFFLINE = "1"  # type: ignore[assignment]
    import datasets

    return datasets


def _unreachable(name: str, error: Exception) -> ConnectionError:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return ConnectionError(
        f"The data set {name!r} could not be read: {line}. Check the name and the network, or give a "
        "file."
    )
