"""Speed and memory of the memory update beside other implementations, on the CPU or on a GPU.

Everything is compared in one run: rounds go through all rows in turn, and medians and ratios are reported.
Before any time is taken, our forms that are timed are compared with the reference, in float64 and in the
dtype measured: outputs, state and gradients, and tokens one at a time with one call.
The best product rate of this machine is measured in the same rounds, and ours is given as a share of it
(operations counted as 22 D E per token and head forward, three times that with the backward).

    python benchmarks/kernels.py --out benchmarks/results --picture docs/kernels.png
    python benchmarks/kernels.py --device cuda --out benchmarks/results

Rows of `titans-pytorch` and `flash-linear-attention` appear where those packages are installed.
"""

import argparse
import contextlib
import gc
import importlib.metadata
import importlib.util
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from provenance import peak_rss_mib, provenance
from torch import Tensor

from titans_core import PRESETS, Backbone, MemoryConfig, NeuralMemory, count_parameters
from titans_core.memory import unit_length
from titans_kernels import UpdateRule, memory_update

Work = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Shape:
    batch: int = 4
    time: int = 2048
    heads: int = 4
    width: int = 64
    expansion: int = 4
    chunk: int = 64

    @property
    def operations(self) -> int:
        """Of a forward: 22 D E per token and head."""
        per_token = 22 * self.width * self.width * self.expansion
        return per_token * self.batch * self.time * self.heads


def inputs(shape: Shape, device: str, dtype: torch.dtype, backward: bool) -> dict[str, Any]:
    """Random tokens, gates and initial memory of a depth-2 memory."""
    torch.manual_seed(0)
    tokens = (shape.batch, shape.time, shape.heads, shape.width)
    q, k, v = (torch.randn(tokens, device=device) for _ in range(3))
    step, momentum, forget = (torch.rand(*tokens[:3], 2, device=device) for _ in range(3))
    sizes = [shape.width, shape.expansion * shape.width, shape.width]
    initial = tuple(
        torch.randn(shape.heads, o, i, device=device) / i**0.5 for i, o in pairwise(sizes)
    )
    norm = tuple(
        x.expand(shape.heads, shape.width).to(device) for x in (torch.ones(1, 1), torch.zeros(1, 1))
    )

    def ready(x: Tensor) -> Tensor:
        return x.to(dtype).detach().clone().requires_grad_(backward)

    return {
        "q": ready(unit_length(q)), "k": ready(unit_length(k)), "v": ready(v),
        "step_size": ready(0.1 * step), "momentum": ready(momentum), "forget": ready(0.02 * forget),
        "initial": tuple(map(ready, initial)), "norm": tuple(map(ready, norm)),
        "rule": UpdateRule(chunk_size=shape.chunk),
    }  # fmt: skip


def leaves_of(given: dict[str, Any]) -> list[Tensor]:
    """The tensors among these and in tuples of them."""
    parts = (x if isinstance(x, tuple) else (x,) for x in given.values())
    return [x for part in parts for x in part if isinstance(x, Tensor)]


def update(shape: Shape, device: str, dtype: torch.dtype, backward: bool, backend: str) -> Work:
    given = inputs(shape, device, dtype, backward)
    leaves = leaves_of(given)

    def work() -> None:
        y, _ = memory_update(**given, backend=backend)
        if backward:
            torch.autograd.grad(y.sum(), leaves)

    return work


def layer(module: torch.nn.Module, shape: Shape, device: str, backward: bool, take: Any) -> Work:
    module = module.to(device)
    x = torch.randn(shape.batch, shape.time, shape.heads * shape.width, device=device)
    x.requires_grad_(backward)

    def work() -> None:
        if not backward:
            with torch.no_grad():
                take(module(x))
            return
        module.zero_grad()
        take(module(x)).sum().backward()

    return work


def ours(shape: Shape) -> torch.nn.Module:
    config = MemoryConfig(
        num_heads=shape.heads, expansion=shape.expansion, chunk_size=shape.chunk, max_surprise=None
    )
    return NeuralMemory(shape.heads * shape.width, config)


def theirs(shape: Shape, default: bool = False) -> torch.nn.Module:
    from titans_pytorch import MemoryMLP
    from titans_pytorch import NeuralMemory as Theirs

    model = MemoryMLP(shape.width, depth=2, expansion_factor=float(shape.expansion))
    return Theirs(
        dim=shape.heads * shape.width, dim_head=shape.width, heads=shape.heads, model=model,
        chunk_size=shape.chunk, batch_size=None if default else shape.chunk,
    )  # fmt: skip


def attention(
    shape: Shape,
    device: str,
    backward: bool,
    window: int | None,
    dtype: torch.dtype = torch.float32,
) -> Work:
    given = inputs(shape, device, dtype, backward)
    q, k, v = (given[name].transpose(1, 2) for name in "qkv")
    seen = None
    if window is not None:
        t = torch.arange(shape.time, device=device)
        apart = t[:, None] - t
        seen = (apart >= 0) & (apart < window)

    def work() -> None:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
        if backward:
            torch.autograd.grad(y.sum(), [given[name] for name in "qkv"])

    return work


def fla(shape: Shape, device: str, backward: bool, dtype: torch.dtype = torch.float32) -> Work:
    given = inputs(shape, device, dtype, backward)
    q, k, v = (given[name] for name in "qkv")
    beta, decay = given["step_size"][..., 0], (1 - given["forget"][..., 0]).log()
    if device == "cpu":
        from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule as run
    else:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule as run

    def work() -> None:
        out = run(q, k, v, decay, beta)
        y = out[0] if isinstance(out, tuple) else out
        if backward:
            torch.autograd.grad(y.float().sum(), [given[name] for name in "qkv"])

    return work


def ttt(shape: Shape, device: str, backward: bool, dtype: torch.dtype = torch.float32) -> Work:
    """TTT-Linear: a linear memory without momentum or forgetting, its mini-batch our chunk."""
    given = inputs(shape, device, dtype, backward)
    q, k, v = (given[name] for name in "qkv")
    weight, bias = (x.detach() for x in given["norm"])
    eta = given["step_size"][..., :1]
    if device == "cpu":
        from fla.ops.ttt.naive import chunk_ttt_linear_ref as run

        sizes = {"mini_batch_size": shape.chunk}
    else:
        from fla.ops.ttt import chunk_ttt_linear as run

        sizes = {"chunk_size": shape.chunk}

    def work() -> None:
        y = run(q * 1, k, v, weight, bias, eta * 1, **sizes)[0]  # it scales q in place
        if backward:
            torch.autograd.grad(y.float().sum(), [given[name] for name in "qkv"])

    return work


def products(device: str, dtype: torch.dtype, shape: Shape) -> dict[str, Work]:
    """Batched products 64 x [64 x 64 x 256], by the default route and by oneDNN's."""
    a = torch.randn(64, 64, 64, device=device, dtype=dtype)
    b = torch.randn(64, 64, 256, device=device, dtype=dtype)
    out = torch.empty(64, 64, 256, device=device, dtype=dtype)

    def plain() -> None:
        for _ in range(20):
            torch.bmm(a, b, out=out)

    def onednn() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        plain()
        torch.set_float32_matmul_precision(before)

    return (
        {"product": plain}
        if dtype != torch.float32
        else {"product": plain, "product, medium": onednn}
    )


PRODUCT_OPERATIONS = 20 * 64 * 2 * 64 * 64 * 256


TIMED = ("auto", "chunked")
"""Backends of which times are taken."""

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-3}


def check(shape: Shape, device: str) -> dict[str, dict[str, float]]:
    """Largest errors of what is timed: against the reference in float64, and of tokens one at a time.

    Of outputs, state and gradients, relative to each tensor's largest entry.
    """
    small = Shape(batch=1, time=3 * shape.chunk + 5, heads=2, width=shape.width, chunk=shape.chunk)
    wanted = values(small, device, torch.float64, "reference")
    errors: dict[str, dict[str, float]] = {}
    dtypes = [torch.float64, torch.float32] + [torch.bfloat16] * (device == "cuda")
    for backend in TIMED:
        found = {
            str(dtype): largest_error(values(small, device, dtype, backend), wanted)
            for dtype in dtypes
        }
        if device == "cuda":
            with matmul_precision("high"):
                again = values(small, device, torch.float32, backend)
            found["tf32"] = largest_error(again, wanted)
        errors[backend] = found
    errors["one token at a time"] = {
        str(dtype): decoding_error(small, device, dtype) for dtype in TOLERANCES
    }
    for found in errors.values():
        for dtype, tolerance in TOLERANCES.items():
            assert found[str(dtype)] < tolerance, errors
    return errors


def values(shape: Shape, device: str, dtype: torch.dtype, backend: str) -> list[Tensor]:
    """Outputs, final state, and the gradients of a sum of their squares by all that is given."""
    given = inputs(shape, device, dtype, True)
    y, state = memory_update(**given, backend=backend)
    found = [y, *(w for part in state[:3] for w in part)]
    loss = torch.stack([x.double().square().sum() for x in found]).sum()
    return [*found, *torch.autograd.grad(loss, leaves_of(given))]


def largest_error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    errors = [
        ((x.double() - y).abs().max() / y.abs().max().clamp_min(1e-3)).item()
        for x, y in zip(got, wanted, strict=True)
    ]
    # A NaN is no maximum's.
    return max(errors) if all(math.isfinite(error) for error in errors) else math.inf


@torch.no_grad()
def decoding_error(shape: Shape, device: str, dtype: torch.dtype) -> float:
    """Of a layer's tokens one at a time, across the end of a chunk, against one call."""
    torch.manual_seed(0)
    module = ours(shape).to(device, dtype)
    x = torch.randn(1, shape.chunk + 4, shape.heads * shape.width, device=device, dtype=dtype)
    whole, wanted = module(x)
    y, state = module(x[:, :-8])
    outputs = [y]
    for t in range(x.shape[1] - 8, x.shape[1]):
        y, state = module(x[:, t : t + 1], state)
        outputs.append(y)

    def parts(y: Tensor, state: Any) -> list[Tensor]:
        return [x.double() for x in (y, *state.memory.memory, *state.memory.surprise)]

    return largest_error(parts(torch.cat(outputs, 1), state), parts(whole, wanted))


@contextlib.contextmanager
def matmul_precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    yield
    torch.set_float32_matmul_precision(before)


def gpu_lengths(shape: Shape, count: int) -> dict[str, dict[str, float]]:
    """Seconds forward and backward with tf32 products, at one row of ever more tokens."""
    found = {}
    with matmul_precision("high"):
        for length in (2048 * 4**power for power in range(4)):
            one = replace(shape, batch=1, time=length)
            rows = {
                "memory_update": update(one, "cuda", torch.float32, True, "auto"),
                "attention": attention(one, "cuda", True, None, torch.bfloat16),
            }
            with contextlib.suppress(ImportError):
                rows["fla gated delta rule"] = fla(one, "cuda", True, torch.bfloat16)
            found[str(length)] = rounds(rows, count, "cuda")
    return found


def training(
    name: str, count: int, device: str, batch: int = 8, length: int = 4096
) -> dict[str, float]:
    """Tokens per second of a preset's training step, products in bf16, and its share of the card's rate.

    Six operations per parameter and token, and the memory's own; the embedding's table does none.
    """
    torch.manual_seed(0)
    config = PRESETS[name]
    model = Backbone(config).to(device)
    x = torch.randn(batch, length, config.dim, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device == "cuda")
    n = 256 if device == "cpu" else 8192
    big = torch.randn(n, n, device=device, dtype=torch.bfloat16)

    def work() -> None:
        with torch.autocast(device, torch.bfloat16):
            y, _ = model(x)
            loss = y.float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    with matmul_precision("high"):
        seconds = rounds({"step": work, "product": lambda: big @ big}, count, device)
    memory = config.memory
    heads = Shape(
        batch=batch, time=length, heads=memory.num_heads, width=config.dim // memory.num_heads,
        expansion=memory.expansion,
    )  # fmt: skip
    done = 6 * count_parameters(model) * batch * length + 3 * config.num_layers * heads.operations
    rate = 2 * n**3 / seconds["product"]
    return {
        "tokens/s": batch * length / seconds["step"], "bf16 product FLOP/s": rate,
        "share of it": done / seconds["step"] / rate,
    }  # fmt: skip


def floor(shape: Shape, count: int) -> dict[str, float]:
    """Least seconds of a forward and backward at the rates that this card shows: by tf32 products, by memory.

    In memory are the tokens, their gradients, and every chunk's first state, written and read twice.
    """
    big = torch.randn(8192, 8192, device="cuda")
    out = torch.empty_like(big)
    with matmul_precision("high"):
        seconds = rounds(
            {"product": lambda: torch.mm(big, big, out=out), "copy": lambda: out.copy_(big)},
            count, "cuda",
        )  # fmt: skip
    rows = shape.batch * shape.heads
    states = rows * shape.time / shape.chunk * 4 * shape.width**2 * shape.expansion * 4 * 3
    tokens = rows * shape.time * shape.width * 4 * 8
    return {
        "products": 3 * shape.operations * seconds["product"] / (2 * 8192**3),
        "memory": (states + tokens) * seconds["copy"] / (2 * 4 * 8192**2),
    }


def timed(work: Work, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def rounds(rows: dict[str, Work], count: int, device: str) -> dict[str, float]:
    """Median seconds of each row; each round runs every row once."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for index in range(count + 1):
        for name, work in rows.items():
            seconds = timed(work, device)
            if index:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def rows_of(shape: Shape, device: str, backward: bool) -> dict[str, Work]:
    rows = products(device, torch.float32, shape)
    for backend in TIMED:
        name = "memory_update" if backend == "auto" else f"memory_update, {backend}"
        rows[name] = update(shape, device, torch.float32, backward, backend)
    rows["NeuralMemory"] = layer(ours(shape), shape, device, backward, lambda out: out[0])
    for name, build in {
        "titans-pytorch": lambda: layer(theirs(shape), shape, device, backward, lambda out: out[0]),
        "titans-pytorch, one batch": lambda: layer(
            theirs(shape, True), shape, device, backward, lambda out: out[0]
        ),
        "fla gated delta rule": lambda: fla(shape, device, backward),
        "fla TTT-Linear": lambda: ttt(shape, device, backward),
    }.items():
        try:
            rows[name] = build()
        except ImportError as error:
            print(f"{name}: {error}", file=sys.stderr)
    rows["attention"] = attention(shape, device, backward, None)
    rows["attention, window 512"] = attention(shape, device, backward, 512)
    return rows


def peak_mib(shape: Shape, which: str) -> float:
    """Memory that one training step adds, measured in this process: call it in a fresh one."""
    module = ours(shape) if which == "ours" else theirs(shape)
    work = layer(module, shape, "cpu", True, lambda out: out[0])
    gc.collect()
    before = peak_rss_mib()
    work()
    return peak_rss_mib() - before


def fresh_peaks(shape: Shape) -> dict[str, float]:
    names = ["ours"] + ["theirs"] * (importlib.util.find_spec("titans_pytorch") is not None)
    peaks = {}
    for name in names:
        done = subprocess.run(
            [sys.executable, __file__, "--peak", name, str(shape.chunk)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        peaks[name] = float(done.stdout.split()[-1])
    return peaks


def decode(shape: Shape, device: str) -> dict[str, Work]:
    """64 tokens one at a time through a layer, after 100."""
    rows: dict[str, Work] = {}
    x = torch.randn(shape.batch, 164, shape.heads * shape.width, device=device)

    def build(module: torch.nn.Module) -> Work:
        module = module.to(device).eval()
        with torch.no_grad():
            _, state = module(x[:, :100])

        @torch.no_grad()
        def work() -> None:
            after = state
            for t in range(100, 164):
                _, after = module(x[:, t : t + 1], state=after)

        return work

    rows["NeuralMemory"] = build(ours(shape))
    with contextlib.suppress(ImportError):
        rows["titans-pytorch"] = build(theirs(shape))
    return rows


def by_length(shape: Shape, count: int) -> dict[str, float]:
    """Microseconds per token of a forward and backward, a sequence of few rows and a 32 times longer one."""
    rows = {}
    for time_ in (2048, 65536):
        given = Shape(batch=1, time=time_, chunk=shape.chunk)
        rows[str(time_)] = update(given, "cpu", torch.float32, True, "auto")
    return {name: 1e6 * s / int(name) for name, s in rounds(rows, count, "cpu").items()}


def measure(shape: Shape, device: str, count: int) -> dict[str, Any]:
    found: dict[str, Any] = {"shape": vars(shape), "error": check(shape, device)}
    for backward in (False, True):
        seconds = rounds(rows_of(shape, device, backward), count, device)
        best = max(PRODUCT_OPERATIONS / s for n, s in seconds.items() if n.startswith("product"))
        rate = shape.operations * (3 if backward else 1) / seconds["memory_update"]
        name = "forward + backward" if backward else "forward"
        found[name] = {
            "seconds": seconds, "best product GFLOP/s": best / 1e9,
            "GFLOP/s": rate / 1e9, "share of the best product": rate / best,
        }  # fmt: skip
    found["64 tokens, one at a time"] = rounds(decode(shape, device), count, device)
    if device == "cpu":
        found["MiB of a training step"] = fresh_peaks(shape)
        found["us per token by length"] = by_length(shape, count)
    else:
        found["floor of forward + backward"] = floor(shape, count)
        found["forward + backward by length"] = gpu_lengths(shape, count)
    return found


def table(results: dict[str, Any]) -> str:
    lines = ["| chunk | what | row | ms | of memory_update |", "|---|---|---|---|---|"]
    for chunk, found in results["chunks"].items():
        for what in ("forward", "forward + backward"):
            base = found[what]["seconds"]["memory_update"]
            lines += [
                f"| {chunk} | {what} | {name} | {1e3 * s:.1f} | {s / base:.2f} |"
                for name, s in found[what]["seconds"].items()
            ]
            share = found[what]["share of the best product"]
            lines.append(f"| {chunk} | {what} | share of the best product | {share:.0%} | |")
        for name, s in found["64 tokens, one at a time"].items():
            lines.append(f"| {chunk} | 64 tokens, one at a time | {name} | {1e3 * s:.1f} | |")
        lines += [
            f"| {chunk} | MiB of a training step | {name} | {mib:.0f} | |"
            for name, mib in found.get("MiB of a training step", {}).items()
        ]
        lines += [
            f"| {chunk} | us per token, forward + backward | {name} tokens, 1 row | {us:.1f} | |"
            for name, us in found.get("us per token by length", {}).items()
        ]
    return "\n".join(lines)


def draw(results: dict[str, Any], picture: Path) -> None:
    """Milliseconds of every row, a panel for each chunk size, forward below forward and backward."""
    from matplotlib.figure import Figure

    chunks = results["chunks"]
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels = figure.subplots(1, len(chunks), sharey=True, squeeze=False)[0]
    for panel, (chunk, found) in zip(panels, chunks.items(), strict=True):
        for what, color in (("forward + backward", "#c8d8ea"), ("forward", "#3b6ea5")):
            rows = {
                name: 1e3 * s
                for name, s in found[what]["seconds"].items()
                if not name.startswith("product")
            }
            panel.barh(list(rows), list(rows.values()), color=color, label=what)
        panel.set(title=f"chunk {chunk}", xlabel="milliseconds", xscale="log", xlim=(10, None))
        panel.grid(axis="x", alpha=0.3)
    panels[0].invert_yaxis()
    panels[-1].legend(loc="lower right", fontsize=8)
    shape = next(iter(chunks.values()))["shape"]
    figure.suptitle(
        "B {batch}, T {time}, H {heads}, D {width}, float32, ".format(**shape)
        + f"{results['device']}, {results['threads']} threads",
        fontsize=10,
    )
    figure.savefig(picture, dpi=120)


def versions() -> dict[str, str]:
    """Of what is measured beside ours, or runs it, where it is installed."""
    found = {}
    for name in ("titans-pytorch", "flash-linear-attention", "triton"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--peak"]:
        torch.set_num_threads(2)
        print(peak_mib(Shape(chunk=int(sys.argv[3])), sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--chunks", type=int, nargs="+", default=[64, 16])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {
        "device": options.device if options.device == "cpu" else torch.cuda.get_device_name(),
        "threads": options.threads, "rounds": options.rounds,
        **provenance(), "versions": versions(),
        "chunks": {},
    }  # fmt: skip
    path = options.out / f"kernels-{options.device}.json"
    for chunk in options.chunks:
        results["chunks"][chunk] = measure(Shape(chunk=chunk), options.device, options.rounds)
        path.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    if options.device == "cuda":
        for name in ("170m", "340m"):
            results[f"training {name}"] = training(name, options.rounds, "cuda")
            print(name, results[f"training {name}"], flush=True)
        path.write_text(json.dumps(results, indent=2) + "\n")
    if options.picture:
        draw(results, options.picture)


if __name__ == "__main__":
    main()
