r"""Classifiers of short DNA on four real sets, beside k-mer logistic regression and a small CNN.

UCI splice junctions in stratified ten-fold cross-validation (seed 0), GUE's prom_core_tata, mouse_0 and
tf_4 in their official splits. Every choice is made on validation sequences: in UCI's folds a tenth of
those trained on, else GUE's, without those that are trained on too. Promoters and splice sites have a
strand, so they are read as given. Sites of transcription factors have none, and no fixed place: Titans and
the CNN read both strands, the linear model of bases by position is left out, and validation decides
whether the k-mers are those of both strands, and whether the CNN's head sees places or their maximum.

    python benchmarks/dna_classification.py --data shared/data/dna --out benchmarks/results

For those who have GenomicBenchmarks, its five sets of the Titans paper by Caduceus' protocol: its own test
set, a tenth of the training set for validation and early stopping, another one for each of five seeds.
Each is a folder genomic_benchmarks/NAME under --data with train and test, classes as folders of .txt
files or as tables of places in --genome.

    python benchmarks/dna_classification.py --data DIR --sets human_nontata_promoters --seeds 5 \
        --genome hg38.fa --out benchmarks/results

Finished cells are kept in the JSON file, so the command goes on where it was stopped.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from provenance import provenance

from titans_core import count_parameters
from titans_domains.config import override
from titans_domains.dna import ModelConfig, SequenceClassifier
from titans_domains.dna.baselines import HEADS, KmerRegression, cnn_proba, train_cnn
from titans_domains.dna.genome import Genome
from titans_domains.dna.labelled import Labelled, labelled, labelled_splits
from titans_domains.dna.labels import held_out, known_labels, read_labels
from titans_domains.dna.metrics import intervals, scores
from titans_domains.dna.splits import canonical, duplicates, overlaps

GENOMIC = "genomic_benchmarks/"
MEMBERS = {"uci_splice": 5}
"""Networks whose mean is predicted, where few sequences make one of them unsure. Each has a tenth of
the training part for its own validation, so that nearly all sequences are trained on."""
SITES = ["strands=average", "head.linear=false"]
SETS: dict[str, tuple[str, list[list[str]], int]] = {
    "uci_splice": ("uci/splice.data", [["head.kmers=0"]], 14),
    "prom_core_tata": ("gue/prom_prom_core_tata", [[]], 12),
    "mouse_0": ("gue/mouse_0", [SITES], 12),
    "tf_4": ("gue/tf_4", [SITES], 10),
    "human_enhancers_cohn": (f"{GENOMIC}human_enhancers_cohn", [SITES], 10),
    "human_enhancers_ensembl": (f"{GENOMIC}human_enhancers_ensembl", [SITES], 10),
    "human_ensembl_regulatory": (f"{GENOMIC}human_ensembl_regulatory", [SITES], 10),
    "human_nontata_promoters": (f"{GENOMIC}human_nontata_promoters", [[]], 10),
    "human_ocr_ensembl": (f"{GENOMIC}human_ocr_ensembl", [SITES], 10),
}
"""Where each set lies, settings of the models of which validation takes one, and the most epochs."""
FIRST = ["uci_splice", "prom_core_tata", "mouse_0", "tf_4"]
FOLDS = 10
SYSTEMS = ("titans", "k-mers", "cnn")
Figures = dict[str, Any]


def titans(
    train: Labelled, valid: Labelled, test: Labelled, options: argparse.Namespace, seed: int
) -> tuple[np.ndarray, Figures]:
    """The candidate with the lowest loss on the validation sequences, or the mean of several networks."""
    _, candidates, epochs = SETS[options.set]
    if members := MEMBERS.get(options.set):
        model = override(ModelConfig(), [*candidates[0], *options.model])
        classifier = SequenceClassifier(
            model, epochs=epochs, seed=members * seed, members=members, device=options.device
        )
        classifier.fit(
            [*train.sequences, *valid.sequences], np.concatenate([train.labels, valid.labels])
        )
        parameters = members * count_parameters(classifier.networks_[0])
        about = {"parameters": parameters, "mixer": model.backbone.mixer, "members": members}
        return classifier.predict_proba(test.sequences), about
    lowest, best, about = np.inf, None, {}
    for settings in candidates:
        model = override(ModelConfig(), [*settings, *options.model])
        classifier = SequenceClassifier(model, epochs=epochs, seed=seed, device=options.device)
        classifier.fit(train.sequences, train.labels, validation=(valid.sequences, valid.labels))
        loss = cross_entropy(valid.labels, classifier.predict_proba(valid.sequences))
        if loss < lowest:
            lowest, best = loss, classifier
            parameters = count_parameters(classifier.networks_[0])
            about = {"parameters": parameters, "mixer": model.backbone.mixer, "chosen": settings}
    assert best is not None
    return best.predict_proba(test.sequences), about


def kmers(
    train: Labelled, valid: Labelled, test: Labelled, options: argparse.Namespace, seed: int
) -> tuple[np.ndarray, Figures]:
    """Of one strand or both, as has the lower loss on the validation sequences, where none has a strand."""
    models = [
        KmerRegression(both_strands=both).fit(
            train.sequences, train.labels, (valid.sequences, valid.labels)
        )
        for both in ([False, True] if strandless(options.set) else [False])
    ]
    losses = [cross_entropy(valid.labels, m.predict_proba(valid.sequences)) for m in models]
    best = models[int(np.argmin(losses))]
    about = {"kind": best.kind, "C": best.strength, "both_strands": best.both_strands}
    return best.predict_proba(test.sequences), about


def cnn(
    train: Labelled, valid: Labelled, test: Labelled, options: argparse.Namespace, seed: int
) -> tuple[np.ndarray, Figures]:
    """With the head that has the lower loss on the validation sequences, where none has a strand."""
    both = strandless(options.set)
    models = [
        train_cnn(
            train.sequences, train.labels, (valid.sequences, valid.labels), seed=seed, head=head,
            # Half of each strand is seen in an epoch.
            both_strands=both, epochs=24 if both else 12,
        )
        for head in (HEADS if both else HEADS[:1])
    ]  # fmt: skip
    losses = [cross_entropy(valid.labels, cnn_proba(m, valid.sequences)) for m in models]
    best = models[int(np.argmin(losses))]
    about = {"parameters": count_parameters(best), "chosen": best.head}
    return cnn_proba(best, test.sequences), about


def cross_entropy(labels: np.ndarray, proba: np.ndarray) -> float:
    return float(-np.log(proba[np.arange(len(labels)), labels]).mean())


def strandless(name: str) -> bool:
    return SITES in SETS[name][1]


RUN: dict[str, Callable[..., tuple[np.ndarray, Figures]]] = {
    "titans": titans, "k-mers": kmers, "cnn": cnn,
}  # fmt: skip


Triple = tuple[Labelled, Labelled, Labelled]


def parts(name: str, options: argparse.Namespace, seed: int = 0) -> list[Triple]:
    """Train, valid and test of a set; of UCI splice one such triple for each fold."""
    path = options.data / SETS[name][0]
    if SETS[name][0].startswith(GENOMIC):
        return [genomic(path, options.genome, seed)]
    if name != "uci_splice":
        splits = labelled_splits(path)
        known = set(map(canonical, splits["train"].sequences))
        new = [canonical(s) not in known for s in splits["valid"].sequences]
        # GUE's validation sets hold sequences of the training sets, which say nothing about others.
        return [(splits["train"], splits["valid"].take(np.flatnonzero(new)), splits["test"])]
    from sklearn.model_selection import StratifiedKFold

    whole = labelled(path)
    numbers = np.unique(whole.labels, return_inverse=True)[1]
    whole = whole._replace(labels=numbers)
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    found = []
    for rows, test in folds.split(whole.sequences, numbers):
        rest = whole.take(rows)
        chosen = held_out(rest.sequences, rest.labels, None, 0.1, 0)
        train, valid = rest.take(np.flatnonzero(~chosen)), rest.take(np.flatnonzero(chosen))
        found.append((train, valid, whole.take(test)))
    return found


def genomic(path: Path, genome: Path | None, seed: int) -> Triple:
    """The sets of GenomicBenchmarks as they are, and a tenth of the training set for validation."""
    splits = labelled_splits(path, genome=None if genome is None else Genome(genome))
    train, test = splits["train"], splits["test"]
    numbers, classes, _ = read_labels(train.labels, len(train.sequences))
    chosen = held_out(train.sequences, numbers, None, 0.1, seed)
    train = train._replace(labels=numbers)
    test = test._replace(labels=known_labels(test.labels, classes, False))
    return train.take(np.flatnonzero(~chosen)), train.take(np.flatnonzero(chosen)), test


def describe(triples: list[Triple]) -> Figures:
    train, valid, test = triples[0]
    named = {"train": train.sequences, "valid": valid.sequences, "test": test.sequences}
    return {
        "train": len(train.sequences), "valid": len(valid.sequences),
        "test": sum(len(t.sequences) for _, _, t in triples), "parts": len(triples),
        "duplicates in train": duplicates(train.sequences),
        "overlaps of the first part": [str(o) for o in overlaps(named)],
    }  # fmt: skip


def cells(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """Set, system and seed, one seed of everything first. Logistic regression has no seed."""
    for seed in range(options.seeds):
        for name in options.sets:
            for system in options.systems:
                if system != "k-mers" or seed == 0:
                    yield name, system, seed


def run_cell(
    name: str, system: str, seed: int, options: argparse.Namespace, kept: list[Any],
    save: Callable[[], None],
) -> Figures:  # fmt: skip
    """The figures of one cell; `kept` holds the parts that are done."""
    triples = parts(name, options, seed)
    options.set = name
    for train, valid, test in triples[len(kept) :]:
        began = time.process_time()
        proba, about = RUN[system](train, valid, test, options, seed)
        kept.append(
            {"proba": np.round(proba, 5).tolist(), "about": about,
             "cpu_seconds": time.process_time() - began}
        )  # fmt: skip
        print(name, system, seed, len(kept), scores(test.labels, proba), flush=True)
        save()
    truth = np.concatenate([test.labels for _, _, test in triples])
    proba = np.concatenate([np.array(part["proba"]) for part in kept])
    return {
        "figures": {k: v._asdict() for k, v in intervals(truth, proba).items()},
        "cpu_seconds": sum(part["cpu_seconds"] for part in kept),
        **kept[0]["about"],
        "chosen": [part["about"].get("chosen") for part in kept],
        **provenance(),
    }


def table(results: Figures) -> str:
    """Mean over seeds, with the lowest and the highest; with one seed, its bootstrap interval."""
    lines = ["| set | system | seeds | accuracy | MCC | macro-F1 | AUROC |", "|---" * 7 + "|"]
    groups: dict[tuple[str, str], list[Figures]] = {}
    for key, cell in results["cells"].items():
        name, system, _ = key.split(" ")
        groups.setdefault((name, system), []).append(cell["figures"])
    for (name, system), found in groups.items():
        row = [name, system, str(len(found))]
        for figure in ("accuracy", "mcc", "macro_f1", "auroc"):
            values = [100 * f[figure]["value"] for f in found]
            low, high = min(values), max(values)
            if len(found) == 1:
                low, high = (100 * found[0][figure][end] for end in ("low", "high"))
            row.append(f"{np.mean(values):.1f} ({low:.1f} to {high:.1f})")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Folder with uci/ and gue/.")
    parser.add_argument("--genome", type=Path, help="FASTA of GenomicBenchmarks' places: hg38.")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=FIRST)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "dna_classification.json"
    results: Figures = {"model": options.model, "sets": {}, "cells": {}, "unfinished": {}}
    if path.exists():
        results = json.loads(path.read_text())
        if results["model"] != options.model:
            raise SystemExit(
                f"{path} holds cells of --model {results['model']}: take another --out."
            )

    def save() -> None:
        path.write_text(json.dumps(results, indent=1) + "\n")

    for name in options.sets:
        if name not in results["sets"]:
            results["sets"][name] = describe(parts(name, options))
    for name, system, seed in cells(options):
        key = f"{name} {system} {seed}"
        if key not in results["cells"]:
            kept = results["unfinished"].setdefault(key, [])
            results["cells"][key] = run_cell(name, system, seed, options, kept, save)
            del results["unfinished"][key]
            save()
    print(table(results))


if __name__ == "__main__":
    main()
