"""`titans serve` under load: latency, time to the first token, tokens/s, and the same one at a time.

Locust's clients (`serving_load.py`) ask a server on loopback for as long as is said, first with their
requests decoded together, then with `--concurrency 1`, on one machine with the clients. Tokens are those
that the server has counted.

    pip install locust
    python benchmarks/serving.py runs/small --seconds 300 --out benchmarks/results
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from cells import weights_of
from provenance import command, provenance

from titans_core.files import write_whole

LOAD = Path(__file__).with_name("serving_load.py")


@contextmanager
def served(run: Path, *options: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A server of the run and its address."""
    args = [sys.executable, "-m", "titans_cli.app", "serve", str(run), "--port", "0", *options]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, "the server has not started"
        yield url, process
    finally:
        process.terminate()
        process.wait()


def metrics(url: str) -> dict[str, float]:
    with urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}


def load(url: str, locust: str, clients: int, seconds: int) -> list[dict[str, Any]]:
    """What locust has measured, by the kind of request."""
    done = subprocess.run(
        [locust, "-f", LOAD, "--headless", "--only-summary", "--json", "-u", str(clients),
         "-r", str(clients), "-t", f"{seconds}s", "-s", "600", "--host", url, "--loglevel", "ERROR"],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    return list(json.loads(done.stdout[done.stdout.index("[") :]))


def percentile(times: dict[str, int], share: float) -> float:
    """Milliseconds of a histogram, whose steps are those to which locust rounds."""
    counts = sorted((float(time), count) for time, count in times.items())
    left = share * sum(count for _, count in counts)
    for at, count in counts:
        left -= count
        if left <= 0:
            return at
    return float("nan")


def measure(run: Path, locust: str, clients: int, seconds: int, concurrency: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        options = (
            "--sessions", f"{folder}/sessions", "--in-process", str(max(1, clients // 4)),
            "--concurrency", str(concurrency), "--queue", str(2 * clients),
        )  # fmt: skip
        with served(run, *options) as (url, process):
            began = time.perf_counter()
            found = load(url, locust, clients, seconds)
            took = time.perf_counter() - began
            counted = metrics(url)
            process.terminate()
            code = process.wait()
    by = {entry["name"]: entry for entry in found}
    completion = by["completion"]
    made, read = (counted[f'titans_tokens_total{{kind="{k}"}}'] for k in ("completion", "prompt"))
    return {
        "concurrency": concurrency, "seconds": took, "exit code": code,
        "requests": completion["num_requests"],
        "errors": sum(entry["num_failures"] for entry in found),
        "p50_ms": percentile(completion["response_times"], 0.5),
        "p99_ms": percentile(completion["response_times"], 0.99),
        "first_token_p50_ms": percentile(by["first token"]["response_times"], 0.5),
        "first_token_p99_ms": percentile(by["first token"]["response_times"], 0.99),
        "tokens_per_s": made / took, "prompt_tokens_per_s": read / took,
        "statuses": {
            status: int(count) for name, count in counted.items()
            if (match := re.match(r'titans_requests_total\{route="/v1/completions",status="(\d+)"', name))
            for status in [match[1]]
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--locust", default=shutil.which("locust"), help="its command")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.locust is None:
        parser.error("locust is missing: pip install locust, or name its command by --locust")
    results: dict[str, Any] = {
        **provenance(), "command": command(), "cores": os.cpu_count(),
        "weights": weights_of(options.run), "run": options.run.name, "clients": options.clients,
    }  # fmt: skip
    for name, concurrency in (("together", options.concurrency), ("one at a time", 1)):
        results[name] = measure(
            options.run, options.locust, options.clients, options.seconds, concurrency
        )
        print(name, json.dumps(results[name]), flush=True)
    results["times_faster"] = (
        results["together"]["tokens_per_s"] / results["one at a time"]["tokens_per_s"]
    )
    write_whole(options.out / "serving.json", json.dumps(results, indent=1) + "\n")
    print(f"{results['times_faster']:.2f} times the tokens/s of one at a time")


if __name__ == "__main__":
    main()
