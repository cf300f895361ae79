"""The DNA benchmarks: GenomicBenchmarks' folders by Caduceus' protocol, and figures of several seeds."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from dna_files import fasta, packed
from tiny_dna import planted

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
NAME = "human_nontata_promoters"
SMALL = ("backbone.dim=8", "backbone.memory.num_heads=2", "stem.channels=8", "head.hidden=8")


def benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def genomic_benchmark(folder: Path, *, places: bool) -> None:
    """A made set in the layout of GenomicBenchmarks: files of sequences, or places in g.fa."""
    genome, lines = "", dict[Path, str]()
    for split, count in (("train", 40), ("test", 20)):
        for number, (sequence, label) in enumerate(zip(*planted(count, seed=count), strict=True)):
            path = folder / "genomic_benchmarks" / NAME / split / ("negative", "positive")[label]
            path.parent.mkdir(parents=True, exist_ok=True)
            if places:
                lines.setdefault(path, "id,region,start,end,strand\n")
                start = len(genome)
                lines[path] += f"{number},chr1,{start},{start + len(sequence)},+\n"
            else:
                path.mkdir(exist_ok=True)
                (path / f"{number}.txt").write_text(sequence)
            genome += sequence
    for path, text in lines.items():
        packed(path.with_suffix(".csv.gz"), text, "gzip")
    packed(folder / "g.fa", fasta({"1": genome}), "plain")


@pytest.mark.parametrize("places", [False, True])
def test_a_genomic_benchmark_is_run_by_caduceus_protocol(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: bool
) -> None:
    module = benchmark("dna_classification", monkeypatch)
    genomic_benchmark(tmp_path, places=places)
    path = tmp_path / "genomic_benchmarks" / NAME
    genome = tmp_path / "g.fa" if places else None
    splits = [module.genomic(path, genome, seed) for seed in (0, 0, 1)]
    for train, valid, test in splits:
        assert [len(part.sequences) for part in (train, valid, test)] == [36, 4, 20]
        assert {0, 1} == set(train.labels) == set(valid.labels)
        assert not set(train.sequences) & set(valid.sequences)
        assert test.sequences == splits[0][2].sequences
    assert splits[0][1].sequences == splits[1][1].sequences != splits[2][1].sequences
    systems = ["k-mers"] if places else ["titans", "k-mers", "cnn"]
    asked = ["--data", tmp_path, "--sets", NAME, "--systems", *systems, "--seeds", 2]
    asked += ["--out", tmp_path / "out", *(["--genome", genome] if places else [])]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, asked), "--model", *SMALL])
    module.main()
    found = json.loads((tmp_path / "out/dna_classification.json").read_text())
    assert found["sets"][NAME]["test"] == 20
    assert len(found["cells"]) == (1 if places else 5)
    for cell in found["cells"].values():
        assert 0 <= cell["figures"]["accuracy"]["value"] <= 1


def test_figures_of_several_seeds_are_a_mean_with_its_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = benchmark("dna_genome", monkeypatch)

    def row(bits: float) -> dict[str, float]:
        return {"all": bits, "without operon": bits + 1}

    def copies(bits: float) -> list[dict[str, float]]:
        return [{"copy": 1, "strand": 1, "16S": bits, "23S": 2 * bits}]

    lines = module.table(
        {
            "held out": {"floor": row(1.9), "lmm, carried": row(1.8), "lmm, carried, seed 1": row(1.7)},
            "needle": {"floor": copies(2.0), "lmm, carried": copies(1.0),
                       "lmm, carried, seed 1": copies(0.5)},
        }
    ).splitlines()  # fmt: skip
    assert lines[2:4] == [
        "| floor | 1.9000 | 2.9000 |",
        "| lmm, carried | 1.7500 (1.7000 to 1.8000) | 2.7500 (2.7000 to 2.8000) |",
    ]
    assert lines[-2] == "| 1 | + | 16S | 2.000 | 0.750 (0.500 to 1.000) |"
