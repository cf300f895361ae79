"""1,000 sessions through `titans serve` with evictions, deletions, restarts and kills: is any lost or mixed?

One request at a time, in a random order, each with a text of its own. After every request the hash of the
session's memory must be that of a memory which read the same alone in this process, bit for bit; so must it
be after every restart. Some restarts are SIGKILL, which `--durable` sessions outlive; of those by SIGTERM
every other is without it, so that most sessions are written at the end.
Deleted sessions must be gone, and their receipts those of a fresh memory.

    python benchmarks/serving_sessions.py runs/tiny --out benchmarks/results
"""

import argparse
import json
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import torch
from cells import weights_of
from provenance import command, provenance
from serving import metrics, served

from titans_core.files import write_whole
from titans_core.sessions import state_hash
from titans_domains.language.generate import pick
from titans_domains.language.reading import stream_of
from titans_domains.language.task import load_run

TOKENS = 4


class Alone:
    """What each session has come to, computed here."""

    def __init__(self, run: Path) -> None:
        self.model, self.tokenizer, _ = load_run(run, torch.device("cpu"))
        self.states: dict[str, Any] = {}
        self.fresh = state_hash(self.model.backbone.fresh_state(1))

    @torch.no_grad()
    def read(self, name: str, prompt: str, seed: int) -> None:
        """The prompt, and the tokens that follow it."""
        state = self.states.get(name)
        random = torch.Generator().manual_seed(seed)
        ids = stream_of(self.tokenizer, prompt.encode(), state)[None]
        if state is None:
            state = self.model.backbone.fresh_state(1)
        for _ in range(TOKENS + 1):
            logits, state = self.model(ids, state)
            if _ == TOKENS:
                break
            ids = pick(logits[:, -1].float(), 1.0, 1.0, random)
            if ids.item() == self.tokenizer.end:
                break
        self.states[name] = state

    def hash(self, name: str) -> str:
        return state_hash(self.states[name]) if name in self.states else self.fresh


class Trial:
    def __init__(self, run: Path, folder: Path, sessions: int, in_process: int, seed: int) -> None:
        self.run, self.folder, self.in_process = run, folder, in_process
        self.names = [f"session-{number}" for number in range(sessions)]
        self.lots, self.alone = random.Random(seed), Alone(run)
        self.there: set[str] = set()
        self.counts = dict.fromkeys(("requests", "deleted", "restarts", "kills", "wrong"), 0)

    def ask(self, client: httpx.Client, method: str, path: str, body: Any = None) -> httpx.Response:
        self.counts["requests"] += 1
        return client.request(method, path, json=body)

    def check(self, fine: bool, what: str) -> None:
        if not fine:
            self.counts["wrong"] += 1
            print("WRONG", what, flush=True)

    def look(self, client: httpx.Client, name: str) -> None:
        """Whether the session is what it is alone, or is not there where it was deleted."""
        found = self.ask(client, "GET", f"/v1/sessions/{name}")
        if name in self.there:
            self.check(found.json().get("sha256") == self.alone.hash(name), f"{name} {found.text}")
        else:
            self.check(found.status_code == 404, f"{name} is there")

    def turn(self, client: httpx.Client, name: str, number: int) -> None:
        if name not in self.there:
            self.ask(client, "POST", "/v1/sessions", {"id": name})
            self.there.add(name)
        prompt = f"{name} says, for the time {number}, what nobody else has said. "
        body = {"prompt": prompt, "max_tokens": TOKENS, "seed": number, "session": name}
        done = self.ask(client, "POST", "/v1/completions", body)
        self.check(done.status_code == 200, f"{name} {done.text}")
        self.alone.read(name, prompt, number)
        self.look(client, name)

    def delete(self, client: httpx.Client, name: str) -> None:
        receipt = self.ask(client, "DELETE", f"/v1/sessions/{name}").json()
        gone = receipt.get("sha256") == receipt.get("fresh_sha256") == self.alone.fresh
        self.check(gone, f"{name} {receipt}")
        self.there.discard(name)
        self.alone.states.pop(name, None)
        self.counts["deleted"] += 1
        self.look(client, name)

    def round(self, number: int, *, kill: bool, durable: bool) -> dict[str, float]:
        """A life of the server: a turn of every session in a random order, and some deletions."""
        options = (
            "--sessions",
            str(self.folder),
            "--in-process",
            # All, where they are to be written at the end.
            str(self.in_process if durable else len(self.names)),
            *["--durable"] * durable,
        )
        with served(self.run, *options) as (url, process):
            with httpx.Client(base_url=url, timeout=60) as client:
                for name in self.lots.sample(self.names, len(self.names)):
                    self.look(client, name)
                    if name in self.there and self.lots.random() < 0.1:
                        self.delete(client, name)
                    else:
                        self.turn(client, name, number)
                counted = metrics(url)
            process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            process.wait()
        self.counts["kills" if kill else "restarts"] += 1
        return {
            where: counted[f'titans_sessions{{where="{where}"}}'] for where in ("process", "disk")
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--in-process", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        trial = Trial(
            options.run,
            Path(folder) / "sessions",
            options.sessions,
            options.in_process,
            options.seed,
        )
        for number in range(options.rounds):
            kill = number % 2 == 1
            held = trial.round(number, kill=kill, durable=kill or number % 4 == 2)
            print(number, trial.counts, held, flush=True)
        files = len(list((Path(folder) / "sessions").glob("*.memory")))
    trial.check(files == len(trial.there), f"{files} files of {len(trial.there)} sessions")
    results = {
        **provenance(), "command": command(), "cores": os.cpu_count(), "seed": options.seed,
        "weights": weights_of(options.run), "run": options.run.name, "sessions": options.sessions,
        "in_process": options.in_process, "seconds": time.perf_counter() - began,
        "there_at_the_end": len(trial.there), **trial.counts, "held": held,
    }  # fmt: skip
    write_whole(options.out / "serving_sessions.json", json.dumps(results, indent=1) + "\n")
    raise SystemExit(trial.counts["wrong"] > 0)


if __name__ == "__main__":
    main()
