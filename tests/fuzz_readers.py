"""Every reader of files, beside valid files in a folder and what may be done to each of them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import torch
from dna_files import bases, fasta, genbank, packed
from fuzzing import BYTES, JSON, JSON_LINES, SAFETENSORS, TEXT, Mutation
from tiny_dna import planted
from tiny_dna import tiny_model as tiny_dna_model
from tiny_language import DOCUMENTS, tiny_config, write_documents
from tiny_timeseries import SETTINGS as SERIES_SETTINGS
from tiny_timeseries import table, untrained

from titans_core import BackboneConfig, MemoryConfig, load_memory, save_memory
from titans_core.files import sha256_of
from titans_core.memory_file import identity_of
from titans_core.session_files import MODEL, SessionFiles
from titans_domains.checkpoints import (
    REST,
    TENSORS,
    WEIGHTS,
    best,
    load_checkpoint,
    rebuild,
    save_checkpoint,
    step_name,
)
from titans_domains.config import override, to_dict
from titans_domains.dna import DOMAIN as DNA
from titans_domains.dna.classifier import SequenceClassifier
from titans_domains.dna.genome import Genome, read_bed
from titans_domains.dna.labelled import labelled_splits
from titans_domains.dna.reading import read_records
from titans_domains.dna.saved import load_classifier
from titans_domains.dna.streams import read_pieces
from titans_domains.dna.tokenizers import load_tokenizer as load_dna_tokenizer
from titans_domains.dna.tokenizers import make_tokenizer, save_tokenizer
from titans_domains.dna.variants import Skipped, read_vcf
from titans_domains.language import DOMAIN as LANGUAGE
from titans_domains.language import corpus
from titans_domains.language.model import LanguageModel
from titans_domains.language.reading import load_reading
from titans_domains.language.scoreboard.board import CELLS, Board
from titans_domains.language.task import load_run
from titans_domains.language.tokenizers import BPETokenizer, load_tokenizer
from titans_domains.log import trim_metrics, trim_samples
from titans_domains.runs import CONFIG, is_run, load_run_table
from titans_domains.timeseries import DOMAIN as SERIES
from titans_domains.timeseries.carrying import CarryingPredictor
from titans_domains.timeseries.frames import from_table, read_csv
from titans_domains.timeseries.predictor import TitansPredictor
from titans_domains.timeseries.task import BEST, BEST_SCORE, best_loss
from titans_domains.weights import header_of, load_weights

CPU = torch.device("cpu")
STEP = step_name(2)


def nothing(folder: Path) -> None:
    """Checksums stay as they are."""


class Reader(NamedTuple):
    files: dict[str, Sequence[Mutation]]
    read: Callable[[Path], object]
    renew: Callable[[Path], None] = nothing


def language_model() -> LanguageModel:
    torch.manual_seed(0)
    config = BackboneConfig(dim=8, num_layers=1, memory=MemoryConfig(num_heads=1))
    return LanguageModel(config, 257).eval()


def write_checkpoint(folder: Path, model: LanguageModel) -> None:
    checkpoint = {
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
        "configuration": json.loads(next(iter(header_of(model).values()))),
        "valid": {"bits_per_byte": 3.0},
        "global_step": 2,
        "loops": {"fit_loop": {"progress": {"ready": 2, "done": [1, 2]}}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(2.0), "mean": torch.ones(3)}}}],
        "lr_schedulers": [{"last_epoch": 2, "base_lrs": [0.1, 0.1]}],
        "carried": tuple(model.backbone.fresh_state(2)),
        "cursor": {"next": 5, "rows": [[0, 7], [3, 1]]},
        "random": torch.get_rng_state(),
        "skipped": 0,
    }
    save_checkpoint(checkpoint, folder)


def checkpoint(folder: Path) -> Reader:
    model = language_model()
    write_checkpoint(folder / STEP, model)

    def read(folder: Path) -> None:
        found = load_checkpoint(folder / STEP)
        rebuild(found["carried"], model.backbone.fresh_state(2))
        load_weights(model, folder / STEP / WEIGHTS)

    files = {WEIGHTS: SAFETENSORS, TENSORS: SAFETENSORS, REST: JSON}
    return Reader({f"{STEP}/{name}": how for name, how in files.items()}, read)


def renew(folder: Path) -> None:
    """Checksums that fit, as whoever changes a file on purpose would make them."""
    path = folder / STEP / REST
    try:
        table = json.loads(path.read_bytes())
        table["sha256"] = {name: sha256_of(path.with_name(name)) for name in (WEIGHTS, TENSORS)}
    except (ValueError, TypeError, RecursionError):
        return
    path.unlink()
    path.write_text(json.dumps(table))


def forged_checkpoint(folder: Path) -> Reader:
    return checkpoint(folder)._replace(renew=renew)


def best_checkpoint(folder: Path) -> Reader:
    write_checkpoint(folder / STEP, language_model())
    assert best(folder).name == STEP
    return Reader({"best.json": JSON}, best)


def memory(folder: Path) -> Reader:
    model = language_model().backbone
    identity = identity_of(model)
    with torch.no_grad():
        state = model(torch.randn(2, 5, 8), model.fresh_state(2))[1]
    save_memory(folder / "a.memory", state, model, caches=True)
    return Reader(
        {"a.memory": SAFETENSORS}, lambda f: load_memory(f / "a.memory", model, identity=identity)
    )


def reading(folder: Path) -> Reader:
    model = language_model()
    with torch.no_grad():
        state = model(torch.randint(0, 256, (1, 5)))[1]
    save_memory(folder / "a.memory", state, model.backbone)
    return Reader({"a.memory": SAFETENSORS}, lambda f: load_reading(f / "a.memory", model))


def sessions(folder: Path) -> Reader:
    model = language_model().backbone
    identity = identity_of(model)
    keys = {"1" * 64: False, "2" * 64: True}
    with torch.no_grad():
        state = model(torch.randn(1, 5, 8))[1]

    def opened() -> SessionFiles:
        return SessionFiles(folder / "sessions", model, identity)

    files = opened()
    paths = [files.path(key, frozen=frozen) for key, frozen in keys.items()]
    for key, frozen in keys.items():
        files.save(key, state, frozen=frozen, label=f"ann {key[0]}")
    files.close()

    def read(folder: Path) -> None:
        files = opened()
        try:
            for file in files.found():
                file.notes()
                files.load(file.key, frozen=file.frozen)
        finally:
            files.close()

    names = {f"sessions/{path.name}": SAFETENSORS for path in paths}
    return Reader({f"sessions/{MODEL}": JSON, **names}, read)


def config_of(domain: Any, config: Any) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        write_config(folder, domain, config)

        def read(folder: Path) -> None:
            is_run(folder)
            load_run_table(folder, domain)

        return Reader({CONFIG: JSON}, read)

    return make


def write_config(folder: Path, domain: Any, config: Any) -> None:
    table = {
        "schema": 1, "domain": domain.name, "config": to_dict(config), "data_sha256": "0" * 64,
        "made_with": {"python": "3.11"},
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(table))


def run(folder: Path) -> Reader:
    """A run as a whole, whose model is built from what its files say."""
    config = tiny_config("embedded", "model.num_layers=1")
    write_config(folder, LANGUAGE, config)
    write_checkpoint(folder / "checkpoints" / STEP, LanguageModel(config.model, 257))
    files = {CONFIG: JSON, f"checkpoints/{STEP}/{WEIGHTS}": SAFETENSORS}
    return Reader(files, lambda folder: load_run(folder, CPU))


def language_tokenizer(folder: Path) -> Reader:
    BPETokenizer.train([text.encode() for text in DOCUMENTS], 270).save(folder)

    def read(folder: Path) -> None:
        tokenizer = load_tokenizer("bpe", folder)
        tokenizer.decode(tokenizer.encode(DOCUMENTS[1].encode()).tolist())

    return Reader({"tokenizer.json": JSON}, read)


def dna_tokenizer(kind: str) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        save_tokenizer(make_tokenizer(kind, [bases(300)], k=3, vocab_size=12), folder)

        def read(folder: Path) -> None:
            load_dna_tokenizer(folder).encode(bases(30, 1))

        return Reader({"tokenizer.json": JSON}, read)

    return make


def documents(name: str, how: Sequence[Mutation]) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        path = folder / name
        if name.endswith(".parquet"):
            pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), path)
        elif name.endswith(".jsonl"):
            write_documents(path)
        else:
            path.write_text("\n".join(DOCUMENTS))
        return Reader({name: how}, lambda folder: list(corpus.documents(str(folder / name))))

    return make


def log(folder: Path) -> Reader:
    rows = [f"{i},{1 / i},0.001,{1000 + i},{'' if i % 3 else 2.5}" for i in range(1, 9)]
    text = "step,loss,lr,tokens_per_s,valid\r\n" + "".join(row + "\r\n" for row in rows)
    (folder / "metrics.csv").write_text(text)
    (folder / "samples.txt").write_text("--- step 3\nOnce\n--- step 6\nupon\n")

    def read(folder: Path) -> None:
        trim_metrics(folder / "metrics.csv", 6)
        trim_samples(folder / "samples.txt", 5)

    return Reader({"metrics.csv": TEXT, "samples.txt": TEXT}, read)


CONTIGS = {"one": bases(150), "two": bases(70, 1).lower(), "three": bases(61, 2, "ACGTN")}
FASTQ = "".join(f"@read{i}\n{bases(20, i)}\n+\n{'I' * 20}\n" for i in range(3))
TEXTS = {
    "a.fa": fasta(CONTIGS), "a.fq": FASTQ, "a.gb": genbank(("one", bases(150)), ("two", bases(70))),
}  # fmt: skip


def records(name: str, how: str, read: Callable[[Path], Any]) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        packed(folder / name, TEXTS[name], how)
        mutations = TEXT if how == "plain" else BYTES
        return Reader({name: mutations}, lambda folder: list(read(folder / name)))

    return make


def fetch_all(path: Path) -> list[str]:
    genome = Genome(path)
    return [genome.fetch(name, 0, length) for name, length in genome.lengths.items()]


def index(folder: Path) -> Reader:
    packed(folder / "a.fa", TEXTS["a.fa"], "plain")
    lines = [
        "\t".join([name, *map(str, contig)])
        for name, contig in Genome(folder / "a.fa").index.items()
    ]
    (folder / "a.fa.fai").write_text("\n".join(lines) + "\n")
    return Reader({"a.fa.fai": TEXT}, lambda folder: fetch_all(folder / "a.fa"))


def bed(folder: Path) -> Reader:
    genome = Genome(packed(folder / "a.fa", TEXTS["a.fa"], "plain"))
    (folder / "a.bed").write_text(
        "track x\none\t3\t20\ta\t0\t+\ntwo\t0\t70\nthree\t5\t9\tb\t1\t-\n"
    )
    return Reader({"a.bed": TEXT}, lambda folder: list(read_bed(folder / "a.bed", genome)))


def vcf(folder: Path) -> Reader:
    genome = Genome(packed(folder / "a.fa", TEXTS["a.fa"], "plain"))
    cells = [("one", 5, CONTIGS["one"][4:6], "A,<DEL>"), ("two", 1, CONTIGS["two"][0], "TTT")]
    rows = [f"{c}\t{p}\t.\t{ref}\t{alt}\t.\t.\t.\n" for c, p, ref, alt in cells]
    (folder / "a.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\n" + "".join(rows))
    return Reader({"a.vcf": TEXT}, lambda f: list(read_vcf(f / "a.vcf", genome, Skipped())))


def labels(name: str, rows: Sequence[str]) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        packed(folder / name, "\n".join(rows) + "\n", "gzip" if name.endswith(".gz") else "plain")
        how = BYTES if name.endswith(".gz") else TEXT
        return Reader({name: how}, lambda folder: labelled_splits(folder / name))

    return make


LABELLED = (
    "sequence,label,name,group",
    *(f"{bases(12, i)},{i % 2},n{i},g{i % 3}" for i in range(6)),
)
SEVERAL = ("sequence\tlabel_a\tlabel_b", *(f"{bases(9, i)}\t{i % 2}\t1" for i in range(5)))
UCI = tuple(f"{'+-'[i % 2]},S{i},\t{bases(9, i).lower()}" for i in range(5))


def places(folder: Path) -> Reader:
    genome = Genome(packed(folder / "a.fa", TEXTS["a.fa"], "plain"))
    for name in ("one", "two"):
        rows = [f"{i},{name},{i * 9},{i * 9 + 8},{'+-'[i % 2]}" for i in range(4)]
        path = folder / "classes" / f"{name}.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(["id,region,start,end,strand", *rows]) + "\n")
    return Reader(
        {"classes/one.csv": TEXT}, lambda f: labelled_splits(f / "classes", genome=genome)
    )


def classifier(folder: Path) -> Reader:
    made = SequenceClassifier(tiny_dna_model(positions=24), epochs=1)
    made.fit(*planted(8)).save(folder / "saved")
    files = {"classifier.json": JSON, "tokenizer.json": JSON, "member-0.safetensors": SAFETENSORS}
    return Reader(
        {f"saved/{name}": how for name, how in files.items()},
        lambda folder: load_classifier(SequenceClassifier, folder / "saved", "cpu"),
    )


def series(long: bool) -> Callable[[Path], Reader]:
    def make(folder: Path) -> Reader:
        frame = table(20, 2).rename_axis("timestamp")
        if long:
            frame = frame.reset_index().melt("timestamp", var_name="item_id", value_name="target")
        frame.to_csv(folder / "a.csv", index=not long)
        return Reader({"a.csv": TEXT}, lambda folder: from_table(read_csv(folder / "a.csv")))

    return make


def predictor(folder: Path) -> Reader:
    untrained().save(folder / "saved")
    files = {"predictor.json": JSON, "model.safetensors": SAFETENSORS}
    return Reader(
        {f"saved/{name}": how for name, how in files.items()},
        lambda folder: TitansPredictor.load(folder / "saved", device="cpu"),
    )


def carrying(folder: Path) -> Reader:
    made = untrained().carry()
    made.update(table(40, 2), freq="h")
    made.save(folder / "saved")
    files = {
        "streams.json": JSON, "streams.safetensors": SAFETENSORS, "streams.memory": SAFETENSORS,
    }  # fmt: skip
    return Reader(
        {f"saved/{name}": how for name, how in files.items()},
        lambda folder: CarryingPredictor.load(folder / "saved", device="cpu"),
    )


def score(folder: Path) -> Reader:
    (folder / BEST).mkdir()
    (folder / BEST / BEST_SCORE).write_text(json.dumps({"schema": 1, "loss": 0.25}))
    return Reader({f"{BEST}/{BEST_SCORE}": JSON}, best_loss)


def cells(folder: Path) -> Reader:
    cell = {
        "task": "mqar-64-4", "system": "lmm", "size": "tiny", "seed": 0, "lr": 0.004,
        "device": "cpu", "quick": True, "data": None,
    }  # fmt: skip
    rows = [{"cell": cell | {"seed": i}, "spec": {"a": 1}, "valid": 0.5} for i in range(3)]
    (folder / CELLS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Reader({CELLS: JSON_LINES}, lambda folder: Board(folder).held.close())


READERS: dict[str, Callable[[Path], Reader]] = {
    "checkpoint": checkpoint,
    "checkpoint, forged": forged_checkpoint,
    "best.json": best_checkpoint,
    "memory": memory,
    "memory of a text": reading,
    "sessions": sessions,
    "config of language": config_of(LANGUAGE, tiny_config("embedded")),
    "config of DNA": config_of(DNA, DNA.presets["tiny"]),
    "config of series": config_of(SERIES, override(SERIES.presets["tiny"], list(SERIES_SETTINGS))),
    "run": run,
    "tokenizer of language": language_tokenizer,
    "tokenizer of bases": dna_tokenizer("nucleotide"),
    "tokenizer of k-mers": dna_tokenizer("kmer"),
    "BPE of DNA": dna_tokenizer("bpe"),
    "text": documents("a.txt", TEXT),
    "JSON lines": documents("a.jsonl", JSON_LINES),
    "Parquet": documents("a.parquet", BYTES),
    "log": log,
    "FASTA": records("a.fa", "plain", read_records),
    "FASTQ": records("a.fq", "plain", read_records),
    "GenBank": records("a.gb", "plain", read_records),
    "FASTA, gzip": records("a.fa", "gzip", read_records),
    "FASTQ, bgzip": records("a.fq", "bgzip", read_records),
    "stream of FASTA": records("a.fa", "plain", read_pieces),
    "stream of GenBank": records("a.gb", "plain", read_pieces),
    "genome": records("a.fa", "plain", fetch_all),
    "genome, bgzip": records("a.fa", "bgzip", fetch_all),
    "index of a genome": index,
    "BED": bed,
    "VCF": vcf,
    "labelled CSV": labels("a.csv", LABELLED),
    "labelled TSV, several": labels("a.tsv", SEVERAL),
    "labelled CSV, gzip": labels("a.csv.gz", LABELLED),
    "labelled, UCI": labels("a.data", UCI),
    "places": places,
    "classifier": classifier,
    "series, wide": series(False),
    "series, long": series(True),
    "predictor": predictor,
    "carrying predictor": carrying,
    "score of series": score,
    "cells of a scoreboard": cells,
}
