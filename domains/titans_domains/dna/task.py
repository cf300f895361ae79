"""DNA as a domain of the shared trainer: classifiers, causal and masked models, and the runs they leave."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool

from titans_domains.checkpoints import WEIGHTS, latest
from titans_domains.dna.classify import ClassifyTask, build
from titans_domains.dna.configs import DNA_PRESETS, DnaConfig, DnaData
from titans_domains.dna.encoder import ModelConfig
from titans_domains.dna.examples import Examples, encode_all, fingerprint
from titans_domains.dna.genome import Genome
from titans_domains.dna.labelled import EMBEDDED, Labelled, labelled_splits
from titans_domains.dna.labels import held_out, known_labels, read_labels
from titans_domains.dna.markov import Markov
from titans_domains.dna.pretrain import SOFT, Ids, PretrainTask, codes_of
from titans_domains.dna.pretrained import Pretrained
from titans_domains.dna.pretraining import CausalModel, MaskedModel
from titans_domains.dna.saved import load_encoder
from titans_domains.dna.splits import chromosome_split
from titans_domains.dna.streams import read_pieces
from titans_domains.dna.tokenizers import (
    DnaTokenizer,
    load_tokenizer,
    make_tokenizer,
)
from titans_domains.domain import Task
from titans_domains.hub import HUB
from titans_domains.runs import load_run_table
from titans_domains.weights import make_model, read_model

if TYPE_CHECKING:
    from titans_domains.dna.classifier import SequenceClassifier


class DnaDomain:
    """DNA: classification, and models of genomes in bits per base."""

    name = "dna"
    config_type = DnaConfig
    presets = DNA_PRESETS

    def absolute(self, config: DnaConfig) -> DnaConfig:
        source = config.data.source
        if source != EMBEDDED and not source.startswith(HUB) and Path(source).exists():
            source = str(Path(source).resolve())
        genome, pretrained = (
            path and str(Path(path).resolve()) for path in (config.data.genome, config.pretrained)
        )
        data = replace(config.data, source=source, genome=genome)
        return replace(config, data=data, pretrained=pretrained)

    def task(self, config: DnaConfig, device: torch.device, folder: Path | None = None) -> Task:
        if config.kind == "train":
            return classify_task(config, device, folder)
        return pretrain_task(config, device, folder)

    def subject(self, run: Path, device: torch.device, checkpoint: str) -> Any:
        from titans_domains.dna.inspected import dna_subject

        return dna_subject(run, device, checkpoint)


DOMAIN = DnaDomain()


def splits_of(data: DnaData) -> dict[str, Labelled]:
    """The splits of a classifier's data, whose places are looked up in its genome."""
    genome = None if data.genome is None else Genome(data.genome)
    return labelled_splits(data.source, genome=genome)


def split_examples(data: DnaData, seed: int) -> tuple[Labelled, Labelled | None]:
    """The labelled sequences to train on, and those for validation."""
    splits = splits_of(data)
    train = splits.get("train", splits.get("all"))
    if train is None:
        raise ValueError(f"{data.source} has no split to train on, only {', '.join(splits)}.")
    if data.valid_chromosomes:
        if "valid" in splits:
            raise ValueError(
                f"{data.source} has a validation split of its own: leave data.valid_chromosomes away."
            )
        rest, chosen = chromosome_split(train.groups, data.valid_chromosomes)
        return train.take(rest), train.take(chosen)
    if "valid" in splits or not data.held_out:
        return train, splits.get("valid")
    numbers, classes, _ = read_labels(train.labels, len(train.sequences))
    chosen = held_out(
        train.sequences, numbers, train.groups, data.held_out, seed,
        names=train.columns or classes.tolist(),
    )  # fmt: skip
    return train.take(np.flatnonzero(~chosen)), train.take(np.flatnonzero(chosen))


def classify_task(config: DnaConfig, device: torch.device, folder: Path | None) -> ClassifyTask:
    train, valid = split_examples(config.data, config.seed)
    begun = None if config.pretrained is None else Path(config.pretrained)
    tokenizer = _tokenizer(config.data, train.sequences, folder or begun)
    targets, classes, multilabel = read_labels(train.labels, len(train.sequences))
    examples = Examples(encode_all(tokenizer, train.sequences, train.names), targets)
    others = None
    if valid is not None:
        if train.columns is not None:
            valid = valid.by_columns(train.columns)
        others = Examples(
            encode_all(tokenizer, valid.sequences, valid.names),
            known_labels(valid.labels, classes, multilabel),
        )
    names = classes.tolist() if train.columns is None else train.columns
    torch.manual_seed(config.seed)
    positions = max(map(len, examples.tokens))
    model = build(fitted_model(config, positions), tokenizer, len(classes), device=device)
    if begun is not None and folder is None:
        load_encoder(model, begun, tokenizer)
    return ClassifyTask(
        model, examples, others, tokenizer=tokenizer, classes=names,
        batch_size=config.train.rows, seed=config.seed, smoothing=config.loss.smoothing,
        weights="balanced" if config.loss.balanced else None, folder=folder,
        length=max(map(len, train.sequences)),
        data_sha256=fingerprint(train.sequences, train.labels),
    )  # fmt: skip


def begun_from(config: DnaConfig, run: Path) -> DnaConfig:
    """The configuration of a classifier with the encoder and the tokens of a pretrained run."""
    theirs, _ = load_run_table(run, DOMAIN)
    if theirs.kind == "train":
        raise ValueError(f"{run} is a classifier: give a run of `titans dna pretrain`.")
    encoder = {name: getattr(theirs.model, name) for name in ("stem", "backbone", "direction")}
    tokens = {name: getattr(theirs.data, name) for name in ("tokenizer", "k", "vocab_size")}
    return replace(
        config,
        model=replace(config.model, **encoder),
        data=replace(config.data, **tokens),
        pretrained=str(run),
    )


def fitted_model(config: DnaConfig, positions: int) -> ModelConfig:
    """The model of a run: positions beyond the longest sequence are not there."""
    head = config.model.head
    return replace(config.model, head=replace(head, positions=min(head.positions, positions)))


def _tokenizer(data: DnaData, sequences: list[str], folder: Path | None) -> DnaTokenizer:
    if folder is not None:
        return load_tokenizer(folder)
    return make_tokenizer(data.tokenizer, sequences, k=data.k, vocab_size=data.vocab_size)


def pretrain_task(config: DnaConfig, device: torch.device, folder: Path | None) -> PretrainTask:
    data = config.data
    contigs = read_contigs(data)
    text = [contig.sequence for contig in contigs]
    tokenizer = _tokenizer(data, text, folder)
    if not data.soft_masked and tokenizer.kind != "nucleotide":
        raise ValueError(
            "data.soft_masked=false leaves single bases out of the loss: take data.tokenizer="
            f"nucleotide, got {tokenizer.kind}."
        )
    complement = tokenizer.complement if data.both_strands else None
    if data.both_strands and complement is None:
        raise ValueError(
            "data.both_strands needs tokens that have a complement: single bases, or k-mers of stride 1."
        )
    ids = [tokens_of(tokenizer, contig.sequence, contig.ignored) for contig in contigs]
    train, valid = last_share(ids, data.held_out)
    torch.manual_seed(config.seed)
    model = make_model(lambda: new_model(config, tokenizer), device)
    if isinstance(model, CausalModel) and model.order and folder is None:
        model.begin_from(Markov([codes_of(part) for part in train], model.order))
    return PretrainTask(
        model.to(device), tokenizer, train, valid,
        config=config.train, seq_len=data.seq_len, seed=config.seed,
        hidden_share=config.loss.hidden_share, complement=complement,
        data_sha256=hashlib.sha256("\n".join(text).encode()).hexdigest(),
        ambiguous=sum(contig.ambiguous for contig in contigs),
    )  # fmt: skip


def new_model(config: DnaConfig, tokenizer: DnaTokenizer) -> CausalModel | MaskedModel:
    if config.kind == "causal":
        return CausalModel(config.model, tokenizer, config.loss.order)
    return MaskedModel(config.model, tokenizer)


class GenomeContig(NamedTuple):
    sequence: str  # clean
    ignored: Bool[np.ndarray, " T"] | None  # bases that the loss leaves out
    ambiguous: int  # IUPAC codes that became N


def read_contigs(data: DnaData) -> list[GenomeContig]:
    """The contigs of a genome."""
    if data.source == EMBEDDED:
        made = "".join(labelled_splits(EMBEDDED)["train"].sequences)
        return [GenomeContig(made, None, 0)]
    parts: dict[tuple[str, int], list[Any]] = {}
    count = 0
    for piece in read_pieces(data.source):
        count += not piece.start
        parts.setdefault((piece.contig, count), []).append(piece)
    return [
        GenomeContig(
            "".join(piece.sequence for piece in pieces),
            None if data.soft_masked else np.concatenate([piece.soft_mask for piece in pieces]),
            sum(piece.ambiguous for piece in pieces),
        )
        for pieces in parts.values()
    ]


def tokens_of(
    tokenizer: DnaTokenizer, contig: str, ignored: Bool[np.ndarray, " T"] | None = None
) -> Ids:
    """A contig's tokens as `PretrainTask` takes them."""
    ids = tokenizer.encode(contig)
    if int(ids.max()) >= SOFT:
        raise ValueError(f"A vocabulary must be smaller than {SOFT} tokens: take a smaller k.")
    return (ids + (0 if ignored is None else SOFT * ignored)).astype(np.uint16)


def last_share(contigs: list[Ids], share: float) -> tuple[list[Ids], list[Ids]]:
    """The contigs in two parts, of which the second holds the last `share` of all tokens."""
    left = round((1 - share) * sum(map(len, contigs)))
    first, second = [], []
    for ids in contigs:
        cut = min(len(ids), max(0, left))
        left -= len(ids)
        first += [ids[:cut]] if cut else []
        second += [ids[cut:]] if cut < len(ids) else []
    return first, second


def load_model(run: Path, device: torch.device) -> Pretrained:
    """The pretrained model of a run at its newest checkpoint."""
    config, _ = load_run_table(run, DOMAIN)
    if config.kind == "train":
        raise ValueError(
            f"{run} is a classifier: give a run of `titans dna pretrain`, or classify with it."
        )
    tokenizer = load_tokenizer(run)
    weights = latest(run / "checkpoints") / WEIGHTS
    model = read_model(lambda: new_model(config, tokenizer), weights)
    return Pretrained(model.to(device), tokenizer, config.data.seq_len)


def load_classifier(run: Path, device: torch.device) -> "SequenceClassifier":
    """The classifier of a run, or one that was saved."""
    from titans_domains.dna.classifier import SequenceClassifier

    return SequenceClassifier.load(run, device=str(device))
