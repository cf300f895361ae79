"""DNA under the shared trainer: runs, resumption, the best weights, and what runs are loaded as."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dna_files import genbank
from safetensors.torch import load_file, save_file
from tiny_dna import CPU, planted, sequences

from titans_domains.config import override
from titans_domains.dna import DOMAIN, DnaConfig, SequenceClassifier, load_model
from titans_domains.dna.classify import BEST
from titans_domains.dna.labelled import labelled
from titans_domains.dna.report import classifier_report
from titans_domains.dna.task import load_classifier, read_contigs
from titans_domains.runs import resume_run, train_run

SETTINGS = (
    "model.stem.channels=8",
    "model.stem.size=5",
    "model.backbone.dim=8",
    "model.backbone.num_layers=1",
    "model.backbone.memory.num_heads=2",
    "model.backbone.memory.chunk_size=4",
    "model.head.hidden=8",
    "data.seq_len=32",
    "train.batch_size=8",
    "train.warmup=2",
    "train.steps=12",
    "train.valid_every=3",
    "train.checkpoint_every=4",
)


def config(preset: str, source: Path | str, *settings: str) -> DnaConfig:
    changes = [*SETTINGS, f"data.source={json.dumps(str(source))}", *settings]
    return override(DOMAIN.presets[preset], changes)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "promoters.csv"
    rows, labels = planted(40)
    lines = [f"{s},{'promoter' if y else 'none'}" for s, y in zip(rows, labels, strict=True)]
    path.write_text("sequence,label\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "genome.fa"
    first, second = sequences(2, 400, 400)
    path.write_text(f">one\n{first}\n>two\n{second[:100].lower()}{second[100:]}\n")
    return path


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "promoters"
    train_run(DOMAIN, config("tiny", table), out, device=CPU)
    return out


@pytest.mark.parametrize("preset", ["tiny", "causal", "masked"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    preset: str, table: Path, genome: Path, tmp_path: Path
) -> None:
    asked = config(preset, table if preset == "tiny" else genome)
    train_run(DOMAIN, asked, tmp_path / "whole", device=CPU)

    def stop(step: int, row: dict[str, Any]) -> None:
        if step == 6:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train_run(DOMAIN, asked, tmp_path / "cut", device=CPU, show=stop)
    resume_run(DOMAIN, tmp_path / "cut", asked=asked, device=CPU)
    name = "checkpoints/step-0000012/model.safetensors"
    whole, cut = (load_file(tmp_path / folder / name) for folder in ("whole", "cut"))
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[key], cut[key]) for key in whole)
    if preset == "tiny":
        best = [load_file(tmp_path / folder / BEST) for folder in ("whole", "cut")]
        assert all(torch.equal(best[0][key], best[1][key]) for key in best[0])


def rows_of(run: Path) -> list[dict[str, str]]:
    import csv

    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_s_classifier_has_the_weights_of_its_lowest_loss(run: Path, table: Path) -> None:
    losses = {row["step"]: float(row["valid_loss"]) for row in rows_of(run) if row["valid_loss"]}
    assert list(losses) == ["3", "6", "9", "12"]
    classifier = load_classifier(run, CPU)
    best = load_file(run / BEST)
    assert all(torch.equal(best[k], v) for k, v in classifier.networks_[0].state_dict().items())
    from titans_domains.dna.task import split_examples

    valid = split_examples(config("tiny", table).data, 0)[1]
    assert valid is not None
    assert len(valid.sequences) == 4
    proba = classifier.predict_proba(valid.sequences)
    chance = proba[np.arange(4), np.searchsorted(classifier.classes_, valid.labels)]
    assert -np.log(chance).mean() == pytest.approx(min(losses.values()), abs=1e-5)


def test_the_best_weights_are_taken_and_not_the_last(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    best = load_file(copy / BEST)
    save_file(best | {"out.bias": best["out.bias"] + 1}, copy / BEST)
    bias = load_classifier(copy, CPU).networks_[0].out.bias
    assert torch.equal(bias, best["out.bias"] + 1)
    # Without validation there are no best ones.
    (copy / BEST).unlink()
    last = load_file(copy / "checkpoints" / "step-0000012" / "model.safetensors")
    assert torch.equal(load_classifier(copy, CPU).networks_[0].out.bias, last["out.bias"])


def test_a_run_is_a_classifier_of_words(run: Path) -> None:
    classifier = SequenceClassifier.load(run, device="cpu")
    assert classifier.classes_.tolist() == ["none", "promoter"]
    assert classifier.length_ == 24
    assert set(classifier.predict(planted(6)[0])) <= {"none", "promoter"}
    assert classifier.predict_proba(["ACG", "TATAAT" * 9]).shape == (2, 2)


def test_several_labels_keep_their_names(tmp_path: Path) -> None:
    rows, labels = planted(30)
    lines = [f"{s},{y},{1 - y}" for s, y in zip(rows, labels, strict=True)]
    path = tmp_path / "several.csv"
    path.write_text("sequence,label_early,label_late\n" + "\n".join(lines) + "\n")
    train_run(DOMAIN, config("tiny", path, "train.steps=3"), tmp_path / "run", device=CPU)
    classifier = load_classifier(tmp_path / "run", CPU)
    own = labelled(path)
    assert own.columns is not None
    turned = own._replace(labels=own.labels[:, ::-1], columns=own.columns[::-1])
    assert classifier_report(classifier, turned) == classifier_report(classifier, own)
    with pytest.raises(ValueError, match="got label_early, label_x; label_late is in one of them"):
        classifier_report(classifier, own._replace(columns=["label_early", "label_x"]))
    assert classifier.multilabel_
    assert classifier.classes_.tolist() == ["label_early", "label_late"]
    assert classifier.predict(rows).shape == (30, 2)


@pytest.mark.parametrize(
    ("preset", "tokenizer"),
    [("causal", "nucleotide"), ("causal", "kmer"), ("masked", "nucleotide")],
)
def test_a_pretrained_run_reads_and_begins_a_classifier(
    preset: str, tokenizer: str, genome: Path, tmp_path: Path
) -> None:
    order = "loss.order=2" if preset == "causal" and tokenizer == "nucleotide" else "loss.order=0"
    asked = config(preset, genome, f"data.tokenizer={tokenizer}", "data.k=3", order)
    train_run(DOMAIN, asked, tmp_path / "run", device=CPU)
    reader = load_model(tmp_path / "run", CPU)
    assert np.isfinite(reader.log_likelihood(["ACGTACGTA", "TTGACA"])).all()
    assert reader.window == 32
    X, y = planted(20)
    settings: dict[str, Any] = {"tokenizer": tokenizer, "k": 3, "device": "cpu"}
    same = SequenceClassifier(
        asked.model, pretrained=tmp_path / "run", epochs=1, lr=1e-12, weight_decay=0, **settings
    ).fit(X, y)
    ours = dict(same.networks_[0].encoder.named_parameters())
    theirs = dict(reader.model.encoder.named_parameters())
    assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in theirs)
    with pytest.raises(ValueError, match="encoder must be that of"):
        SequenceClassifier(pretrained=tmp_path / "run", **settings).fit(X, y)
    with pytest.raises(ValueError, match="was pretrained with another tokenizer"):
        SequenceClassifier(
            asked.model, pretrained=tmp_path / "run", tokenizer="bpe", vocab_size=9, device="cpu"
        ).fit(X, y)


@pytest.mark.parametrize("content", ["{}", "[]", "3", "null", '{"classes": ["a"', ""])
def test_a_damaged_table_of_classes_is_said(run: Path, tmp_path: Path, content: str) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=r"classes.json is (damaged: it|cut short or)"):
        load_classifier(copy, CPU)


def test_runs_are_taken_for_what_they_are(run: Path, genome: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a classifier: give a run of `titans dna pretrain`"):
        load_model(run, CPU)
    train_run(DOMAIN, config("causal", genome, "train.steps=1"), tmp_path / "run", device=CPU)
    with pytest.raises(ValueError, match="is a run of kind 'causal', which knows no classes"):
        load_classifier(tmp_path / "run", CPU)


def test_a_genome_is_read_with_both_strands_its_end_held_out_and_soft_masks(genome: Path) -> None:
    contigs = read_contigs(config("causal", genome, "data.soft_masked=false").data)
    assert [len(text) for text, _, _ in contigs] == [400, 400]
    assert [None if soft is None else int(soft.sum()) for _, soft, _ in contigs] == [0, 100]
    assert contigs[1][1] is not None
    assert contigs[1][1][:100].all()
    task: Any = DOMAIN.task(config("causal", genome, "data.held_out=0.25"), CPU)
    assert task.bases == 600
    assert [len(ids) for ids in task.valid] == [200]
    assert len(task.streams.source.texts) == 4
    single: Any = DOMAIN.task(config("causal", genome, "data.both_strands=false"), CPU)
    assert len(single.streams.source.texts) == 2


def test_a_part_of_which_no_base_counts_is_refused(tmp_path: Path) -> None:
    text = sequences(1, 400, 400)[0].replace("N", "A")
    for kept, what in ((0, "train on"), (300, "hold out")):
        path = tmp_path / "genome.fa"
        path.write_text(f">one\n{text[:kept]}{text[kept:].lower()}\n")
        with pytest.raises(ValueError, match=f"No base to {what} counts in the loss"):
            DOMAIN.task(config("causal", path, "data.soft_masked=false"), CPU)
        DOMAIN.task(config("causal", path), CPU)
    path.write_text(genbank(("A", text)))
    DOMAIN.task(config("causal", path, "data.soft_masked=false"), CPU)


def test_ambiguous_bases_of_a_genome_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "genome.fa"
    path.write_text(f">one\nRY{sequences(1, 400, 400)[0]}K\n")
    line = DOMAIN.task(config("causal", path), CPU).describe()
    assert line.endswith("; 3 ambiguous bases (IUPAC codes) were read as N")


def test_another_source_is_another_fingerprint(table: Path, genome: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text(table.read_text().replace("promoter", "other"))
    one, two = (DOMAIN.task(config("tiny", path), CPU).data_sha256 for path in (table, other))
    assert one != two
    assert DOMAIN.task(config("tiny", table), CPU).data_sha256 == one


def test_the_embedded_data_and_every_preset_make_a_task() -> None:
    for preset in DOMAIN.presets:
        task = DOMAIN.task(config(preset, "embedded"), CPU)
        batch, _ = next(iter(task.batches(None)))
        assert task.step(batch, task.fresh_state()).loss.isfinite()
        assert "parameters" in task.describe()
        assert task.sample() is None


@pytest.mark.parametrize(
    ("preset", "setting", "message"),
    [
        ("tiny", "kind=predict", "kind must be one of"),
        ("tiny", "model.strands=two", "strands must be one of"),
        ("tiny", "model.stem.size=4", "stem.size must be odd"),
        ("tiny", "model.stem.pool=0", "stem.pool must be at least 1"),
        ("tiny", "model.head.hidden=0", "head.hidden must be at least 1"),
        ("tiny", "data.held_out=1.0", "data.held_out must be at least 0"),
        ("tiny", "loss.smoothing=1.0", "loss.smoothing must be"),
        ("causal", "loss.order=12", "loss.order must be between 0 and 9"),
        ("causal", "model.stem.pool=2", "stem.pool must be 1 where direction is 'forward'"),
        ("causal", "model.direction=both", "direction must be 'forward'"),
        ("causal", "data.tokenizer=bpe", "data.both_strands needs tokens that have a complement"),
        ("masked", "model.stem.pool=2", "stem.pool 1 to predict hidden tokens"),
    ],
)
def test_a_setting_that_cannot_be_is_named(preset: str, setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DOMAIN.task(config(preset, "embedded", "loss.order=0", setting), CPU)


def test_the_best_weights_are_read_only_under_their_own_settings(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    table = json.loads((copy / "config.json").read_text())
    table["config"]["model"]["backbone"]["memory"]["max_surprise"] = 0.25
    (copy / "config.json").write_text(json.dumps(table))
    with pytest.raises(ValueError, match=r"best.safetensors was trained with .*max_surprise = "):
        load_classifier(copy, CPU)
    # Files of before, which do not say under which settings, are not asked.
    save_file(load_file(copy / BEST), copy / BEST, {"loss": "0.5"})
    load_classifier(copy, CPU)


@pytest.mark.parametrize("header", [None, {"loss": "low"}])
def test_best_weights_without_a_loss_are_named(
    run: Path, tmp_path: Path, header: dict[str, str] | None
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    save_file(load_file(copy / BEST), copy / BEST, header)
    with pytest.raises(ValueError, match="best.safetensors is damaged: it has no loss"):
        resume_run(DOMAIN, copy, device=CPU)
