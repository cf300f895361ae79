"""Compiles the Triton kernels of the memory update for a GPU that is not there, and says what they take.

Needs triton alone, whose own ptxas and disassembler are asked; no GPU, driver or CUDA toolkit.

    python benchmarks/compile_kernels.py --out benchmarks/results

`--precision tf32x3` is that of `torch.set_float32_matmul_precision("highest")`.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import triton
from provenance import provenance
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

launching = import_module("titans_kernels.memory_update.triton_launch")
MODULES = ("triton_forward", "triton_read", "triton_backward", "triton_token")
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
WHOLE_NUMBERS = {"N", "R", "H", "T", "first"}
POINTERS = {"reset": "*i8", "written": "*i8", "last": "*i32", "counters": "*i32"}
SETTINGS = {
    "DEPTH": 2, "NORM": True, "GELU": True, "LIMIT": 0.0, "BASE": True, "HELD": False, "RESETS": False,
    "REPLAY": False, "GATES": 2, "L2": True, "RESIDUAL": True,
}  # fmt: skip


def kernels() -> dict[str, Any]:
    names = ("walk_forward", "read_forward", "read_backward", "walk_backward", "token")
    modules = [import_module(f"titans_kernels.memory_update.{name}") for name in MODULES]
    return {name: next(getattr(m, name) for m in modules if hasattr(m, name)) for name in names}


def compiled(
    kernel: Any, width: int, chunk: int, precision: str, **settings: Any
) -> dict[str, Any]:
    """What a kernel takes for heads of a width, a hidden side four times as wide, and chunks."""
    depth = settings.get("DEPTH", 2)
    padded = width if kernel.__name__ == "token" else launching.side(width)
    hidden = padded if depth == 1 else 4 * width
    sizes = launching.Sizes.of((1, 1, launching.side(chunk), padded), depth, hidden, 1, width)
    values = {**SETTINGS, **sizes._asdict(), "PRECISION": precision, **settings}
    given = {n: values[n] for n in kernel.arg_names if n in values and n not in WHOLE_NUMBERS}
    signature, aligned = {}, {}
    for index, name in enumerate(kernel.arg_names):
        kind = "i32" if name in WHOLE_NUMBERS else POINTERS.get(name, "*fp32")
        signature[name] = "constexpr" if name in given else kind
        if name not in given and kind.startswith("*"):
            aligned[(index,)] = [["tt.divisibility", 16]]
    warps = launching.warps_of(kernel.__name__)
    source = ASTSource(fn=kernel, signature=signature, constexprs=given, attrs=aligned)
    binary = triton.compile(
        source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps, "num_stages": 1}
    )
    return {
        "kernel": kernel.__name__, "width": width, "hidden": hidden, "chunk": chunk, "precision": precision,
        **settings, "slices": sizes.SLICES, "warps": warps, **inspected(binary),
    }  # fmt: skip


def inspected(binary: Any) -> dict[str, Any]:
    ptx = binary.asm["ptx"]
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        said = subprocess.run(
            [TOOLS / "ptxas", "-v", "--gpu-name=sm_90a", source, "-o", cubin],
            capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip

    def number(pattern: str) -> int:
        found = re.search(pattern, said)
        assert found is not None, said
        return int(found[1])

    return {
        "registers": number(r"Used (\d+) registers"),
        "spill stores": number(r"(\d+) bytes spill stores"),
        "spill loads": number(r"(\d+) bytes spill loads"),
        "shared": binary.metadata.shared, "fits": binary.metadata.shared <= launching.SHARED_BYTES,
        "wgmma": ptx.count("wgmma.mma_async"), "mma": ptx.count("mma.sync"),
    }  # fmt: skip


def sweep(widths: list[int], chunks: list[int], precision: str) -> Iterator[dict[str, Any]]:
    for name, kernel in kernels().items():
        for width in widths:
            # One token has no products, and no chunk.
            for chunk in chunks if name != "token" else [1]:
                yield compiled(kernel, width, chunk, precision)


COLUMNS = (
    "kernel", "width", "chunk", "slices", "warps", "registers", "spill stores", "spill loads", "shared",
    "wgmma", "mma",
)  # fmt: skip


def row(found: dict[str, Any]) -> str:
    return "| " + " | ".join(str(found[name]) for name in COLUMNS) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 48, 64, 128, 256])
    parser.add_argument("--chunks", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--precision", default="tf32", choices=("tf32", "tf32x3", "ieee"))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"triton": triton.__version__, **provenance(), "kernels": []}
    print(f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|")
    for found in sweep(options.widths, options.chunks, options.precision):
        results["kernels"].append(found)
        print(row(found), flush=True)
    name = "kernels-sm90" + ("" if options.precision == "tf32" else f"-{options.precision}")
    (options.out / f"{name}.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
