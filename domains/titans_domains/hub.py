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
        raise _unopened(name, error) from None


def hub_rows(source: str, split: str, skip: int = 0) -> Iterator[dict[str, Any]]:
    """The rows of one split, from row `skip` on."""
    name, config, _ = hub_parts(source)
    datasets = _datasets()
    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True)
        rows = iter(rows.skip(skip) if skip else rows)
        row = next(rows, None)
    except Exception as error:
        raise _unopened(name, error) from None
    while row is not None:
        yield row
        skip += 1
        try:
            row = next(rows, None)
        except Exception as error:
            raise ConnectionError(
                f"The data set {name!r} could not be read on at row {skip}: {_first_line(error)}. "
                "Check the network and try again; a run that has begun goes on with --resume."
            ) from None


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


def _unopened(name: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"The data set {name!r} could not be opened: {_first_line(error)}. Check the name and the "
        "network, or give a file."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
