"""E. coli K-12 as one stream: bits per base on its last tenth, and its ribosomal operons as needles.

Two causal models are trained on the first nine tenths, both strands: one on all of it, whose held-out
bits per base stand beside those of Markov models of the same bases, and one (--needle) with every
ribosomal operon and 1,000 bases on either side left out, which then reads the whole chromosome in one
pass, memory carried, frozen and reset. Its cost on the 16S and 23S genes stands beside an order-7 Markov
model's, trained on the same bases, and a model's that copies. Copies 4 to 7 lie on the strand of the first
one: a forward reader can know them. Copies 2 and 3 lie on the other strand.

    python benchmarks/dna_genome.py --data shared/data/dna --out benchmarks/results

With --seeds N both are trained from N seeds, and a figure is their mean, with the lowest and the highest.
Models and finished readings are kept in --out, so the command goes on where it was stopped.
"""

import argparse
import gzip
import itertools
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from provenance import peak_rss_mib, provenance
from safetensors.torch import load_file, save_file

from titans_core import count_parameters, decay_groups, detach, state_bytes
from titans_domains.config import override, to_dict
from titans_domains.dna.configs import DnaConfig
from titans_domains.dna.markov import Markov, copy_bits
from titans_domains.dna.pretrain import Ids, PretrainTask
from titans_domains.dna.pretrained import MODES, Mode, Pretrained
from titans_domains.dna.pretraining import CausalModel
from titans_domains.dna.task import DOMAIN, codes_of, tokens_of
from titans_domains.dna.tokenizers import NucleotideTokenizer

HELD_OUT = 0.1
AROUND = 1000
"""Bases on either side of an operon that are left out of training with it."""
PIECE = 4096
SEED = ", seed "
TOKENIZER = NucleotideTokenizer()
Results = dict[str, Any]


class Gene(NamedTuple):
    name: str  # of the product: 16S, 23S or 5S
    start: int
    end: int
    strand: int


class Operon(NamedTuple):
    start: int
    end: int
    strand: int
    genes: list[Gene]


def read_genome(path: Path) -> tuple[str, list[Operon]]:
    """The chromosome and its ribosomal operons in their order, from GenBank features."""
    from Bio import SeqIO

    with gzip.open(path, "rt") as file:
        record = SeqIO.read(file, "genbank")
    genes = [
        Gene(
            f.qualifiers["product"][0].split()[0], int(f.location.start), int(f.location.end),
            f.location.strand,
        )
        for f in record.features
        if f.type == "rRNA"
    ]  # fmt: skip
    operons: list[Operon] = []
    for gene in sorted(genes, key=lambda g: g.start):
        # Genes of one operon lie some hundred bases apart.
        if operons and gene.start - operons[-1].end < 5000:
            last = operons[-1]
            operons[-1] = last._replace(end=gene.end, genes=[*last.genes, gene])
        else:
            operons.append(Operon(gene.start, gene.end, gene.strand, [gene]))
    return str(record.seq), operons


def kept(ids: Ids, operons: list[Operon], end: int) -> list[Ids]:
    """The bases up to `end` without the operons and what lies around them."""
    parts, at = [], 0
    for operon in operons:
        if operon.start - AROUND < end:
            parts.append(ids[at : operon.start - AROUND])
            at = operon.end + AROUND
    return [*parts, ids[at:end]]


def new_model(config: DnaConfig) -> CausalModel:
    return CausalModel(config.model, TOKENIZER, config.loss.order)


def trained(
    name: str, config: DnaConfig, parts: list[Ids], out: Path, results: Results, save: Any
) -> CausalModel:
    """The model of that name: from its file, or trained on the parts."""
    path = out / f"dna_genome-{name}.safetensors"
    torch.manual_seed(config.seed)
    model = new_model(config)
    if path.exists() and f"train {name}" in results:
        model.load_state_dict(load_file(path))
        return model
    if config.loss.order:
        model.begin_from(Markov([codes_of(part) for part in parts], config.loss.order))
    task = PretrainTask(
        model, TOKENIZER, parts, [], config=config.train, seq_len=config.data.seq_len,
        seed=config.seed, complement=TOKENIZER.complement,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(
        decay_groups(model, config.train.weight_decay), lr=config.train.lr, betas=(0.9, 0.95)
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, config.train.rate)
    state, began, recent = task.fresh_state(), time.process_time(), []
    for number, (batch, _) in enumerate(task.batches(None), 1):
        step = task.step(batch, state)
        optimizer.zero_grad()
        step.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip)
        optimizer.step()
        schedule.step()
        state = detach(step.state)
        recent = [*recent[-99:], step.log["bits"]]
        if number % 100 == 0:
            seconds = time.process_time() - began
            print(name, number, f"{np.mean(recent):.4f} bits, {seconds:.0f} s", flush=True)
        if number == config.train.steps:
            break
    results[f"train {name}"] = {
        "bits": float(np.mean(recent)), "cpu_seconds": time.process_time() - began,
        "tokens": config.train.steps * config.train.batch_size * config.data.seq_len,
        "bases": sum(map(len, parts)), **provenance(),
    }  # fmt: skip
    save_file(model.state_dict(), path)
    save()
    return model


def read(model: CausalModel, sequence: str, mode: Mode, window: int) -> tuple[np.ndarray, Results]:
    """Bits of every base of a stream from its first one, and what reading it took."""
    reader = Pretrained(model, TOKENIZER, window)
    chunks = (sequence[i : i + PIECE] for i in range(0, len(sequence), PIECE))
    bits, sizes, resident = [], [], []
    began = time.perf_counter(), time.process_time()
    for reading in reader.bits_per_base(chunks, mode=mode):
        bits.append(reading.bits.astype(np.float32))
        sizes.append(state_bytes(reading.state))
        resident.append(peak_rss_mib())
    early = resident[min(len(resident) - 1, 20)]
    return np.concatenate(bits), {
        "bases": len(sequence), "seconds": time.perf_counter() - began[0],
        "bases_per_cpu_second": len(sequence) / (time.process_time() - began[1]),
        "state_bytes": [sizes[0], sizes[-1]], "peak_mib": [early, resident[-1]],
    }  # fmt: skip


def held_out(bits: np.ndarray, cut: int, operons: list[Operon]) -> Results:
    """Mean bits of the last tenth, and without the operon in it."""
    outside = np.ones(len(bits), bool)
    for operon in operons:
        outside[operon.start : operon.end] = False
    return {
        "all": float(np.nanmean(bits[cut:])),
        "without operon": float(np.nanmean(bits[cut:][outside[cut:]])),
    }


def by_copy(bits: np.ndarray, operons: list[Operon]) -> list[Results]:
    """Mean bits of the 16S and 23S genes of each copy, in the order in which they are read."""
    return [
        {"copy": number, "strand": operon.strand,
         **{g.name: float(np.nanmean(bits[g.start : g.end])) for g in operon.genes if g.name != "5S"}}
        for number, operon in enumerate(operons, 1)
    ]  # fmt: skip


def table(results: Results) -> str:
    lines = ["| held-out last tenth, bits per base | all | without the operon |", "|---|---|---|"]
    for name, rows in by_name(results["held out"]).items():
        cells = [mean([r[key] for r in rows], 4) for key in ("all", "without operon")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    needle = by_name(results["needle"])
    names = list(needle)
    lines += [
        "",
        f"| copy | strand | gene | {' | '.join(names)} |",
        "|---" * (3 + len(names)) + "|",
    ]
    for number, first in enumerate(needle[names[0]][0] if names else []):
        for gene in ("16S", "23S"):
            cells = [mean([row[number][gene] for row in rows], 3) for rows in needle.values()]
            strand = "+" if first["strand"] > 0 else "-"
            lines.append(f"| {first['copy']} | {strand} | {gene} | {' | '.join(cells)} |")
    return "\n".join(lines)


def by_name(rows: dict[str, Any]) -> dict[str, list[Any]]:
    """The rows of all seeds by the name that they share."""
    found: dict[str, list[Any]] = {}
    for name, row in rows.items():
        found.setdefault(name.partition(SEED)[0], []).append(row)
    return found


def mean(values: list[float], digits: int) -> str:
    """The mean, with the lowest and the highest where there are several."""
    text = f"{np.mean(values):.{digits}f}"
    if len(values) == 1:
        return text
    return f"{text} ({min(values):.{digits}f} to {max(values):.{digits}f})"


CONFIG = override(
    DOMAIN.presets["causal"],
    ["data.seq_len=256", "train.batch_size=32", "train.steps=800", "train.lr=3e-3"],
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder with genomes/.")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="settings")
    parser.add_argument("--parts", nargs="+", choices=("floors", "held-out", "needle"),
                        default=["floors", "held-out", "needle"])  # fmt: skip
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    config = override(CONFIG, options.settings)
    path = options.out / "dna_genome.json"
    results: Results = json.loads(path.read_text()) if path.exists() else {}
    # As they come back from the file: without tuples.
    settings = json.loads(json.dumps(to_dict(config)))
    if results.setdefault("config", settings) != settings:
        raise SystemExit(f"{path} holds figures of other settings: take another --out.")
    results.setdefault("held out", {})
    results.setdefault("needle", {})
    results.setdefault("reading", {})
    results["parameters"] = count_parameters(new_model(config))

    def save() -> None:
        path.write_text(json.dumps(results, indent=1) + "\n")

    sequence, operons = read_genome(options.data / "genomes" / "NC_000913.gbk.gz")
    ids = tokens_of(TOKENIZER, sequence)
    codes = codes_of(ids)
    cut = round((1 - HELD_OUT) * len(ids))
    if "floors" in options.parts:
        for order in (6, 7, 8):
            bits = Markov([codes[:cut]], order).bits(codes)
            results["held out"][f"order-{order} Markov"] = held_out(bits, cut, operons)
        bits = Markov([codes_of(part) for part in kept(ids, operons, cut)], 7).bits(codes)
        results["needle"]["order-7 Markov"] = by_copy(bits, operons)
        results["needle"]["copy model"] = by_copy(copy_bits(codes, bits), operons)
        save()
    window = config.data.seq_len
    jobs: list[tuple[str, str, list[Ids], tuple[Mode, ...]]] = [
        ("held-out", "all", [ids[:cut]], ("carried", "frozen")),
        ("needle", "masked", kept(ids, operons, cut), MODES),
    ]
    for seed, (part, name, parts, modes) in itertools.product(range(options.seeds), jobs):
        if part not in options.parts:
            continue
        # Figures of the first seed have the names that they had before there were several.
        name, which = (f"{name}-{seed}", f"{SEED}{config.seed + seed}") if seed else (name, "")
        seeded = replace(config, seed=config.seed + seed)
        model = trained(name, seeded, parts, options.out, results, save)
        for mode in modes:
            key = f"{name}, {mode}"
            if key in results["reading"]:
                continue
            bits, about = read(model, sequence, mode, window)
            label = f"{config.model.backbone.mixer}, {mode}"
            if part == "held-out":
                results["held out"][label + which] = held_out(bits, cut, operons)
            else:
                results["needle"][label + which] = by_copy(bits, operons)
                results["held out"][f"{label}, operons never trained on{which}"] = held_out(
                    bits, cut, operons
                )
            results["reading"][key] = about | provenance()
            save()
            print(key, about, flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
