"""The backend of a run, of whichever domain it is."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from titans_domains.runs import CONFIG
from titans_domains.serving.service import Service

if TYPE_CHECKING:
    from titans_domains.serving.app import Backend


class StoreConfig(NamedTuple):
    """How sessions are kept; see `MemoryStore`."""

    folder: Path | None = None
    in_process: int = 256
    max_sessions: int = 10_000
    ttl: float | None = None
    durable: bool = False


def domain_of(run: Path) -> str:
    """The domain of a run, or of a classifier that was saved alone."""
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run folder {str(run)!r}.")
    if (run / "classifier.json").is_file():
        return "dna"
    try:
        return str(json.loads((run / CONFIG).read_bytes())["domain"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(f"{run} is no run of titans: it has no {CONFIG} of one.") from None


def load_backend(
    run: Path,
    domain: str,
    device: torch.device,
    service: Service,
    store: StoreConfig,
    checkpoint: str | None = None,
) -> "Backend":
    """The backend; `checkpoint` is that of a text, last (the default) or best."""
    if domain != "language" and store != StoreConfig():
        raise ValueError(f"{run} is of the domain {domain!r}: only text has sessions.")
    if domain in ("timeseries", "dna") and checkpoint is not None:
        raise ValueError(
            f"{run} is of the domain {domain!r}, which is served with its best weights: leave "
            "--checkpoint out."
        )
    if domain == "language":
        return _language(run, device, service, store, checkpoint or "last")
    if domain == "timeseries":
        from titans_domains.serving.forecasts import Forecasts
        from titans_domains.timeseries.task import load_run, trained_freq

        predictor, settings = load_run(run, device)
        return Forecasts(service, predictor, settings, trained_freq(run, settings))
    if domain == "dna":
        from titans_domains.dna.task import load_classifier
        from titans_domains.serving.classes import Classes

        return Classes(service, load_classifier(run, device))
    raise ValueError(f"{run} is of the domain {domain!r}, which cannot be served.")


def _language(
    run: Path, device: torch.device, service: Service, config: StoreConfig, checkpoint: str
) -> "Backend":
    from titans_core import MemoryStore
    from titans_domains.language.task import load_run
    from titans_domains.serving.completions import Completions

    model, tokenizer, _ = load_run(run, device, checkpoint)
    model.requires_grad_(False)
    kept = model.backbone.config
    if not (kept.remembers and kept.bounded):
        if config != StoreConfig():
            raise ValueError(f"{run} has no memory of bounded size, so it can have no sessions.")
        return Completions(service, model, tokenizer, None)
    return Completions(service, model, tokenizer, MemoryStore(model.backbone, **config._asdict()))
