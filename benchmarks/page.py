"""Writes docs/performance.md from the raw output in results/: python benchmarks/page.py

No figure on that page is typed by hand; a test compares it with what this script writes.
"""

import json
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PAGE = HERE.parent / "docs" / "performance.md"
NAMES = {
    "memory_update": "the update, in C",
    "memory_update, chunked": "the update, as products in torch",
    "NeuralMemory": "the layer, `NeuralMemory`",
    "titans-pytorch": (
        "layer of titans-pytorch, same chunk and step sizes; its momentum and decay are one step per chunk"
    ),
    "titans-pytorch, one batch": "layer of titans-pytorch, its defaults' one batch",
    "fla gated delta rule": "gated delta rule, naive torch code of fla",
    "fla TTT-Linear": "TTT-Linear, naive torch code of fla",
    "attention": "causal attention of torch",
    "attention, window 512": "the same in a window of 512",
}


def read(name: str) -> dict[str, Any]:
    return dict(json.loads((RESULTS / name).read_text()))


def date_of(commit: str) -> str:
    """The day of a commit; `unknown` outside of a checkout that has it."""
    found = subprocess.run(
        ["git", "log", "-1", "--format=%as", commit.removesuffix("-dirty")],
        cwd=HERE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return found.stdout.strip() or "unknown"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def made_by(made: dict[str, Any], name: str, command: str, threads: str) -> str:
    return (
        f"`{command}`, {made['cpu']} (Zen 3), {threads}, torch {made['torch']}, commit {made['commit']} of "
        f"{date_of(made['commit'])}, raw output in `benchmarks/results/{name}`.\n"
    )


def kernels() -> Iterator[str]:
    name = "kernels-cpu.json"
    results = read(name)
    peers = ", ".join(f"{peer} {version}" for peer, version in results["versions"].items())
    shape = next(iter(results["chunks"].values()))["shape"]
    yield "## The memory update\n"
    command = f"python benchmarks/kernels.py --rounds {results['rounds']} --out benchmarks/results"
    yield made_by(results, name, command, f"{results['threads']} threads")
    yield (
        f"Batch {shape['batch']}, {shape['time']:,} tokens, {shape['heads']} heads of width "
        f"{shape['width']}, hidden width {shape['width'] * shape['expansion']}, float32; medians of "
        f"interleaved rounds. Beside it: {peers}.\n"
    )
    for chunk, part in results["chunks"].items():
        yield f"### Chunk {chunk}\n"
        forward, both = (part[p]["seconds"] for p in ("forward", "forward + backward"))
        rows = [
            (NAMES[row], f"{forward[row] * 1e3:,.0f}", f"{both[row] * 1e3:,.0f}")
            for row in NAMES
            if row in forward
        ]
        yield from table(("milliseconds", "forward", "with backward"), rows)
        yield from table(("chunk " + chunk, "ours", "titans-pytorch"), beside(part))


def beside(part: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    shares = [part[p]["share of the best product"] for p in ("forward", "forward + backward")]
    yield (
        "share of the machine's best product rate, forward / with backward",
        " / ".join(f"{100 * share:.0f} %" for share in shares), "",
    )  # fmt: skip
    memory = part["MiB of a training step"]
    yield "MiB of a training step", f"{memory['ours']:,.0f}", f"{memory['theirs']:,.0f}"
    singly = part["64 tokens, one at a time"]
    yield (
        "milliseconds per token, one at a time",
        *(f"{singly[row] / 64 * 1e3:.2f}" for row in ("NeuralMemory", "titans-pytorch")),
    )
    times = part["us per token by length"]
    lengths = " / ".join(f"{int(n):,}" for n in times)
    yield (
        f"microseconds per token at {lengths} tokens",
        " / ".join(f"{t:.0f}" for t in times.values()),
        "",
    )


def long_streams() -> Iterator[str]:
    name = "long_stream.json"
    runs = read(name)["runs"]
    made = next(iter(runs.values()))["made of"]
    assert all(run["made of"]["commit"] == made["commit"] for run in runs.values())
    yield "## A million tokens in one stream\n"
    command = (
        f"python benchmarks/long_stream.py --data {made['book']} --out benchmarks/results RUN ..."
    )
    yield made_by(made, name, command, "one thread")
    rows = []
    for run in runs.values():
        first, last = run["pieces"][0], run["pieces"][-1]
        rows.append(
            (
                run["mixer"],
                *(
                    f"{show(first)} / {show(last)}"
                    for show in (
                        lambda p: f"{p['state_bytes'] / 1024:,.0f}",
                        lambda p: f"{p['resident_mib']:,.0f}",
                        lambda p: f"{p['us_per_token']:,.0f}",
                    )
                ),
                "yes" if run["finite"] else "no",
            )
        )
    counts = f"after {first['tokens']:,} / {last['tokens']:,} tokens"
    head = ("mixer", f"state in KiB, {counts}", "process in MiB", "µs per token", "all finite")
    yield from table(head, rows)
    yield "![Norms of memory and surprise over a million tokens](stream.png)\n"
    yield "Models of 200,000 parameters; more in [long streams](long.md).\n"


def serving() -> Iterator[str]:
    name = "serving.json"
    results = read(name)
    yield "## A service under load\n"
    yield made_by(results, name, results["command"], f"{results['cores']} cores")
    yield (
        f"{results['clients']} clients for {results['together']['seconds']:.0f} s on the same machine, "
        f"preset `{results['run']}`; mixed prompts, answers and sessions.\n"
    )
    rows = [
        (
            {"together": "decoded together", "one at a time": "one at a time"}[way],
            f"{found['requests']:,}", f"{found['errors']}", f"{found['tokens_per_s']:,.0f}",
            f"{found['p50_ms'] / 1e3:.1f} / {found['p99_ms'] / 1e3:.1f}",
            f"{found['first_token_p50_ms'] / 1e3:.2f} / {found['first_token_p99_ms'] / 1e3:.2f}",
        )
        for way, found in results.items()
        if way in ("together", "one at a time")
    ]  # fmt: skip
    yield from table(
        ("", "requests", "errors", "tokens/s", "latency p50 / p99, s", "first token p50 / p99, s"),
        rows,
    )


def page() -> str:
    head = (
        "# Performance\n",
        "<!-- Written by benchmarks/page.py: change that, and run it. -->\n",
        "Made by `python benchmarks/page.py` from the raw output of the benchmarks. Nothing was measured on "
        "a GPU. The day is that of the commit that was measured. After a change, measure again and "
        "compare:\n",
        "```sh",
        "python benchmarks/compare.py benchmarks/results/kernels-cpu.json new/kernels-cpu.json",
        "```\n",
        "It fails where a ratio within one run (others' time over ours, share of the best product, time per "
        "token of a short stream over a long one's) fell by more than a fifth.\n",
        "![Time of the memory update beside others](kernels.png)\n",
    )
    lines = [*head, *kernels(), *long_streams(), *serving()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE.relative_to(HERE.parent))
