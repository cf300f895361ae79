"""How DNA models are made and trained: configurations and presets."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from titans_core import BackboneConfig, MemoryConfig
from titans_core.presets import LAPTOP
from titans_domains.dna.encoder import ModelConfig
from titans_domains.dna.labelled import EMBEDDED
from titans_domains.dna.stem import StemConfig
from titans_domains.train_config import TrainConfig

Kind = Literal["train", "causal", "masked"]


@dataclass(frozen=True, kw_only=True)
class DnaData:
    # Of a classifier: see `labelled_splits`. Of causal and masked models: a FASTA or GenBank file.
    source: str = EMBEDDED
    genome: str | None = None  # FASTA file in which a classifier's tables of places are looked up
    # Chromosomes (or other groups) of a classifier's data whose sequences are for validation.
    valid_chromosomes: tuple[str, ...] = ()
    tokenizer: Literal["nucleotide", "kmer", "bpe"] = "nucleotide"  # what bases are read as
    k: int = 6  # bases of a k-mer
    vocab_size: int = 4096  # tokens of a BPE
    # Share for validation: of the sequences where the source has no such split, of a genome its end.
    held_out: float = 0.1
    seq_len: int = 512  # tokens of a sequence; of causal and masked models
    both_strands: bool = True  # whether the other strand is trained on too
    soft_masked: bool = True  # whether bases in lower case count in the loss

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise ValueError(f"data.seq_len must be at least 1 token: got {self.seq_len}.")
        if not 0 <= self.held_out < 1:
            raise ValueError(f"data.held_out must be at least 0 and below 1: got {self.held_out}.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    smoothing: float = 0.05  # share of a label that is spread over all classes
    balanced: bool = False  # every class as heavy as the others
    hidden_share: float = 0.15  # share of tokens that are hidden, in masked models
    order: int = 0  # bases seen by the Markov model that a causal model begins from; 0 for none

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1 or not 0 < self.hidden_share < 1:
            raise ValueError(
                "loss.smoothing must be at least 0 and below 1, loss.hidden_share between 0 and 1: "
                f"got {self.smoothing} and {self.hidden_share}."
            )
        if not 0 <= self.order <= 9:
            raise ValueError(f"loss.order must be between 0 and 9 bases: got {self.order}.")


@dataclass(frozen=True, kw_only=True)
class DnaConfig:
    kind: Kind = "train"  # a classifier, or a model of bases from before, or from both sides
    pretrained: str | None = None  # run whose encoder and tokens a classifier begins from
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DnaData = field(default_factory=DnaData)
    loss: LossConfig = field(default_factory=LossConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0  # of initial weights and the order of the data

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}: got {self.kind!r}.")
        if self.pretrained is not None and self.kind != "train":
            raise ValueError(
                f"pretrained is for classifiers, of kind 'train': got it with kind {self.kind!r}."
            )
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must be 0 or more, and below 2**63: got {self.seed}.")


def _reader(direction: Literal["both", "forward"]) -> ModelConfig:
    """A model that predicts bases: one place for each."""
    return ModelConfig(
        stem=StemConfig(pool=1),
        backbone=BackboneConfig(
            dim=64, num_layers=2, memory=MemoryConfig(num_heads=2), hybrid=LAPTOP
        ),
        direction=direction,
        dropout=0.0,
    )


DNA_PRESETS: dict[str, DnaConfig] = {
    "tiny": DnaConfig(
        train=TrainConfig(steps=900, batch_size=64, min_lr=0.05, weight_decay=0.05, valid_every=60)
    ),
    "causal": DnaConfig(
        kind="causal", model=_reader("forward"), loss=LossConfig(order=7),
        train=TrainConfig(batch_size=16, lr=4e-3),
    ),
    "masked": DnaConfig(
        kind="masked", model=_reader("both"), train=TrainConfig(batch_size=16, lr=4e-3)
    ),
}  # fmt: skip
