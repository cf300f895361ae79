"""Runs of 20 steps in every domain, files for them to read, and a browser where there is one."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from dna_files import bases, fasta, packed

from titans_core.listening import memories_of
from titans_domains import dna, language, timeseries
from titans_domains.config import override
from titans_domains.inspection.subject import Run
from titans_domains.runs import train_run

CPU = torch.device("cpu")
STEPS = ("train.steps=20", "train.warmup=2", "train.valid_every=0", "train.checkpoint_every=20")
MODEL = ("dim=16", "num_layers=2", "memory.num_heads=2", "memory.expansion=2")
TEXT = "<script>document.title = 'broken'</script> & Gr\u00f6\u00dfe\n\tthe memory reads. " * 2
DOMAINS = {"language": language, "dna": dna, "timeseries": timeseries}
RUNS = {
    "text": ("language", "tiny", "text.txt", ("data.seq_len=32", "train.batch_size=2")),
    "window": (
        "language", "tiny", "text.txt",
        ("data.seq_len=32", "train.batch_size=2", "model.mixer=attention", "train.steps=1"),
    ),
    "series": (
        "timeseries", "carry", "series.csv",
        ("forecast.context_length=20", "forecast.patch_len=8", "forecast.prediction_length=4",
         "model.memory.chunk_size=4", "data.valid_windows=1", "data.test_windows=1"),
    ),
    "causal": ("dna", "causal", "genome.fa", ("data.seq_len=32", "loss.order=1")),
    "classes": ("dna", "tiny", "labelled.csv", ("model.head.hidden=8", "data.held_out=0.25")),
}  # fmt: skip
READ = {
    "text": "text.txt",
    "series": "series.csv",
    "causal": "genome.fa",
    "classes": "genome.fa",
}
"""What each run with a memory is given to read."""


def made_once(factory: pytest.TempPathFactory) -> Path:
    """A folder with all runs and files, the same for all tests of a session; they leave it as it is."""
    folder = factory.getbasetemp() / "inspection_runs"
    if not folder.exists():
        folder.mkdir()
        make(folder)
    return folder


def make(folder: Path) -> None:
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    (folder / "other.txt").write_text("another text, of which nothing was read before. " * 3)
    packed(
        folder / "genome.fa",
        fasta({"one": bases(150, seed=1), "two": bases(70, seed=2)}, 50),
        "plain",
    )
    rows = [f"{bases(40, seed=i)},{'yes' if i % 2 else 'no'}\n" for i in range(24)]
    (folder / "labelled.csv").write_text("sequence,label\n" + "".join(rows))
    waves = np.random.default_rng(0).normal(size=(150, 2)) + np.sin(np.arange(150) / 4)[:, None]
    waves[40:43, 1] = np.nan
    index = pd.date_range("2024-01-01", periods=150, freq="h")
    pd.DataFrame(waves, index=index, columns=["<b>load", "price"]).to_csv(
        folder / "series.csv", index_label="date"
    )
    for name, (domain, preset, source, changes) in RUNS.items():
        place = "model.backbone" if domain == "dna" else "model"
        settings = [*(f"{place}.{setting}" for setting in MODEL), *STEPS, *changes]
        source = json.dumps(str(folder / source))
        of = DOMAINS[domain].DOMAIN
        config = override(of.presets[preset], [f"data.source={source}", *settings])
        train_run(of, config, folder / name, device=CPU)


def opened(folder: Path, name: str) -> Run:
    domain = RUNS[name][0]
    subject = DOMAINS[domain].DOMAIN.subject(folder / name, CPU, "last")
    return Run(folder / name, domain, subject)


def listen(run: Run, file: Path, record: str | None = None) -> dict[str, torch.Tensor]:
    """What each memory was called with while a record was read [B, T, dim]."""
    seen: dict[str, list[torch.Tensor]] = {}
    hooks = [
        recall.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.setdefault(name, []).append(inputs[0])
        )
        for name, recall in memories_of(run.subject.model).items()
    ]
    for _ in run.subject.passages(file, record):
        pass
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts, 1) for name, parts in seen.items()}


BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)


def rendered(page: Path, script: str, tmp_path: Path) -> dict[str, Any]:
    """What a script finds in the page, in the browser; it fills `found`."""
    copy = tmp_path / "copy.html"
    text = page.read_text(encoding="utf-8")
    end = (
        "<script>const found = {};\n" + script + "\nconst out = document.createElement('pre');"
        "out.id = 'found'; out.textContent = JSON.stringify(found); document.body.append(out);</script>"
    )
    assert text.count("</body>") == 1
    copy.write_text(text.replace("</body>", end + "</body>"), encoding="utf-8")
    done = subprocess.run(
        [
            str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    [said] = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    return json.loads(html.unescape(said))
