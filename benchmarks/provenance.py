"""What a result must carry beside its seed, and the memory of a process."""

import shlex
import subprocess
import sys
from pathlib import Path

import torch

from titans_domains.runs import peak_memory_mib


def provenance() -> dict[str, str]:
    """Commit (with `-dirty` where the tree was changed), processor and torch of this run."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    return {"commit": described.stdout.strip(), "cpu": cpu, "torch": torch.__version__}


def command() -> str:
    """The command line of this process; of paths elsewhere on the machine the last part alone."""
    args = []
    for arg in sys.argv[1:]:
        name, equals, value = arg.rpartition("=")
        elsewhere = value.startswith(("/", ".."))
        args.append(name + equals + (Path(value).name if elsewhere else value))
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *args])


def peak_rss_mib() -> float:
    """Most memory that this process has held."""
    peak = peak_memory_mib(torch.device("cpu"))
    assert peak is not None
    return peak
