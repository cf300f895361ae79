"""What `titans serve` refuses before it serves, and what it says where sessions were lost."""

import errno
import json
from pathlib import Path

import pytest
import torch
from console import Titans, assert_refused

from titans_domains.serving.load import StoreConfig, load_backend
from titans_domains.serving.service import Service
from titans_domains.serving.settings import ServeConfig


@pytest.mark.parametrize("ttl", ["-1", "0", "nan"])
def test_the_time_of_sessions_is_checked_by_its_option(
    here: Path, titans: Titans, ttl: str
) -> None:
    done = titans("serve", "run", "--session-ttl", ttl)
    assert_refused(done, f"--session-ttl must be above 0 seconds: got {float(ttl)}")


def test_the_checkpoint_is_that_which_is_asked_for(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = titans("serve", "run", "--port", 0, "--checkpoint", "worst")
    assert_refused(done, "A checkpoint is 'last' or 'best': got 'worst'")
    asked: list[str] = []
    monkeypatch.setattr(
        "titans_domains.language.task.chosen",
        lambda folder, which: asked.append(which) or max(folder.iterdir()),
    )
    for which in (None, "last", "best"):
        service = Service(ServeConfig())
        backend = load_backend(
            here / "run", "language", torch.device("cpu"), service, StoreConfig(), which
        )
        backend.close()
    assert asked == ["last", "last", "best"]
    config = here / "run/config.json"
    for domain in ("timeseries", "dna"):
        config.write_text(json.dumps({"domain": domain}))
        done = titans("serve", "run", "--port", 0, "--checkpoint", "last")
        assert_refused(done, "served with its best weights: leave --checkpoint out")


def test_sessions_that_are_lost_are_named_at_the_end(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serve(app: object, service: Service, backend: object, *rest: object) -> None:
        store = backend.store  # type: ignore[attr-defined]
        assert store.most == 10_000
        for name in ("a", "b"):
            store.create(f"hash of {name}", label=f"ann {name}")
        monkeypatch.setattr("os.fsync", full)
        backend.close()  # type: ignore[attr-defined]

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("titans_domains.serving.run.serve", serve)
    done = titans("serve", "run", "--port", 0, "--sessions", "kept")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == (
        "error: 2 sessions could not be brought to the disk: No space left on device (ann a, ann b)."
    )
