"""A long document in one call, shared over processes or read by one: memory, time, and whether they agree.

Hidden states drawn at random go through an untrained model, without gradients or with a backward pass. Each
rank is a process of one thread, and so is the one that it is compared with, beside which one of as many
threads as there are cores is timed. Memory is the most that a process held less what it held before the
document, with glibc's malloc told to give back what is freed. A cell that is in the results already is
measured anew where its code or machine were others.

    python benchmarks/sequence_parallel.py --out benchmarks/results
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from cells import kept
from long_stream import resident_mib
from provenance import command, peak_rss_mib, provenance
from torch import Tensor

from titans_core import AttentionConfig, Backbone, BackboneConfig, HybridConfig, MemoryConfig
from titans_core.sequence import forward_share, share_of, sum_gradients
from titans_core.state import named_tensors

BLOCK = 2**12  # tokens that are drawn with one seed, so that each process draws its share alone


@dataclass(frozen=True, kw_only=True)
class Cell:
    mixer: str
    tokens: int
    backward: bool
    ranks: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.mixer}, {self.tokens:,} tokens" + ", with backward" * self.backward


def make_model(mixer: str, seed: int) -> Backbone:
    torch.manual_seed(seed)
    return Backbone(
        BackboneConfig(
            dim=32,
            num_layers=4,
            mixer=mixer,
            memory=MemoryConfig(num_heads=2, expansion=2, chunk_size=16),
            attention=AttentionConfig(num_heads=2),
            hybrid=HybridConfig(num_persistent=4, window=64),
        )
    )


def draw(cell: Cell, first: int, last: int) -> Tensor:
    """Tokens first to last - 1 of the document [1, T, dim]."""
    x = torch.empty(1, last - first, 32)
    for block in range(first // BLOCK, -(-last // BLOCK)):
        generator = torch.Generator().manual_seed(cell.seed * 2**32 + block)
        tokens = torch.randn(BLOCK, 32, generator=generator)
        begin, end = max(first, block * BLOCK), min(last, (block + 1) * BLOCK)
        x[0, begin - first : end - first] = tokens[begin - block * BLOCK : end - block * BLOCK]
    return x


def read(cell: Cell, folder: Path, *, rank: int, ranks: int, threads: int) -> dict[str, float]:
    """What one process does; its outputs, and the first one's gradients, are left in the folder."""
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks,
        timeout=timedelta(minutes=20),
    )  # fmt: skip
    model = make_model(cell.mixer, cell.seed)
    with nullcontext() if cell.backward else torch.no_grad():
        # The first calls of a process take longer than any later ones, and load what they need.
        warm, _ = forward_share(model, draw(cell, 0, 64))
        if cell.backward:
            warm.sum().backward()
            model.zero_grad()
        at = share_of(cell.tokens, grid=model.config.grid)
        dist.barrier()
        before, began, busy = resident_mib(), time.perf_counter(), time.process_time()
        x = draw(cell, at.start, at.stop)
        y, state = forward_share(model, x) if ranks > 1 else model(x)
        if cell.backward:
            y.square().mean().mul((at.stop - at.start) / cell.tokens).backward()
            sum_gradients(model.parameters())
    figures = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": time.process_time() - busy,
        "mib": peak_rss_mib() - before,
        "before_mib": before,
    }
    torch.save(y.detach(), folder / f"y-{rank}.pt")
    if state is not None:
        torch.save(named_tensors(state), folder / "state.pt")
    if cell.backward and rank == 0:
        torch.save({name: p.grad for name, p in model.named_parameters()}, folder / "gradients.pt")
    dist.barrier()
    return figures


def run(cell: Cell, folder: Path, ranks: int, threads: int) -> list[dict[str, float]]:
    """The figures of all ranks."""
    folder.mkdir()
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        # By itself glibc soon keeps what is freed in blocks of up to 32 MiB, which is what tensors of a
        # share are: a quarter of the document, read by any process, would hold more than a quarter.
        "MALLOC_MMAP_THRESHOLD_": str(2**17),
    }
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--read", json.dumps(asdict(cell)), folder,
             str(rank), str(ranks), str(threads)],
            stdout=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    outputs = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError(f"{cell.name}: ranks ended with {[c.returncode for c in children]}")
    return [json.loads(output) for output in outputs]


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest one, relative to the largest entry of its tensor."""
    return max(
        ((ours[name] - x).abs().max() / x.abs().max().clamp_min(1e-30)).item()
        for name, x in theirs.items()
        if x.is_floating_point()
    )


def measure(cell: Cell) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        shared, alone = Path(name) / "shared", Path(name) / "alone"
        (one,) = run(cell, alone, 1, 1)
        together = run(cell, shared, cell.ranks, 1)
        (threaded,) = run(cell, Path(name) / "threaded", 1, os.cpu_count() or 1)
        y = torch.cat([torch.load(shared / f"y-{rank}.pt") for rank in range(cell.ranks)], 1)
        parts = {"outputs": ({"y": y}, {"y": torch.load(alone / "y-0.pt")})}
        for part in ("state", "gradients") if cell.backward else ("state",):
            parts[part] = tuple(torch.load(at / f"{part}.pt") for at in (shared, alone))
        return {
            "alone": one,
            "threads": {"count": os.cpu_count(), **threaded},
            "ranks": together,
            "differences": {part: difference(*both) for part, both in parts.items()},
        }


def table(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "| document | MiB, one process | MiB, each rank | most, as a share | seconds: one process, of all "
        "threads, ranks | processor seconds: one process, each rank | outputs, gradients differ by |"
    ]
    lines.append("|---" * 7 + "|")
    for name, cell in found.items():
        alone, ranks = cell["alone"], cell["ranks"]
        seconds = (alone, cell["threads"], max(ranks, key=lambda rank: rank["seconds"]))
        differences = [cell["differences"].get(part) for part in ("outputs", "gradients")]
        columns = [
            name, f"{alone['mib']:,.0f}", ", ".join(f"{rank['mib']:,.0f}" for rank in ranks),
            f"{max(rank['mib'] for rank in ranks) / alone['mib']:.2f}",
            ", ".join(f"{figures['seconds']:.0f}" for figures in seconds),
            ", ".join(f"{figures['processor_seconds']:.1f}" for figures in (alone, *ranks)),
            ", ".join(f"{x:.0e}" for x in differences if x is not None),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(columns)} |")
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        cell, folder, *numbers = sys.argv[2:]
        rank, ranks, threads = map(int, numbers)
        here = Cell(**json.loads(cell))
        print(json.dumps(read(here, Path(folder), rank=rank, ranks=ranks, threads=threads)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--trained", type=int, default=65_536, help="tokens with a backward pass")
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "sequence_parallel.json"
    found = {}
    for backward, tokens in ((False, options.tokens), (True, options.trained)):
        for mixer in ("lmm", "mag"):
            cell = Cell(
                mixer=mixer, tokens=tokens, backward=backward, ranks=options.ranks,
                seed=options.seed,
            )  # fmt: skip
            stamp = provenance() | {"command": command(), "cell": asdict(cell)}
            found[cell.name] = kept(
                path, "cells", cell.name, stamp, lambda cell=cell: measure(cell)
            )
            print(cell.name, found[cell.name], flush=True)
    print(table(found))


if __name__ == "__main__":
    main()
