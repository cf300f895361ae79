"""Small sequence files for tests."""

import gzip
from pathlib import Path

import numpy as np
from Bio import bgzf
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord


def genbank(*records: tuple[str, str]) -> str:
    made = [
        SeqRecord(Seq(s), id=f"{name}.1", name=name, annotations={"molecule_type": "DNA"})
        for name, s in records
    ]
    return "\n".join(record.format("genbank").rstrip("\n") for record in made) + "\n"


def fasta(contigs: dict[str, str], width: int = 60) -> str:
    lines = []
    for name, sequence in contigs.items():
        lines.append(f">{name} some words")
        lines += [sequence[i : i + width] for i in range(0, len(sequence), width)]
    return "\n".join(lines) + "\n"


def packed(path: Path, text: str, how: str) -> Path:
    """Writes the text plain, by gzip or by bgzip."""
    if how == "plain":
        path.write_text(text)
    elif how == "gzip":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        with bgzf.BgzfWriter(str(path)) as file:
            file.write(text)
    return path


def bases(length: int, seed: int = 0, letters: str = "ACGT") -> str:
    return "".join(np.random.default_rng(seed).choice(list(letters), length))
