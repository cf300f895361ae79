"""Labelled sequences of every layout; what lacks a label or a sequence is named with its line."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dna_files import fasta, packed

from titans_domains import hub
from titans_domains.dna import labelled as module
from titans_domains.dna.genome import Genome
from titans_domains.dna.labelled import labelled, labelled_splits


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("between", [",", "\t", ";"])
def test_a_table_is_read_by_its_header(tmp_path: Path, between: str) -> None:
    text = "id|Sequence|Label|chromosome\na|acgu|1|chr1\n\nb| ACRG |0|chr2\n".replace("|", between)
    path = packed(tmp_path / "x.csv.gz", text, "gzip")
    found = labelled(path)
    assert found.sequences == ["ACGT", "ACNG"]
    assert found.labels.tolist() == [1, 0]
    assert found.labels.dtype == np.int64
    assert found.names == ["a", "b"]
    assert found.groups is not None
    assert found.groups.tolist() == ["chr1", "chr2"]
    assert (found.columns, found.ambiguous) == (None, 1)
    part = found.take(np.array([1]))
    assert (part.sequences, part.names, part.labels.tolist()) == (["ACNG"], ["b"], [0])
    assert part.groups is not None
    assert part.groups.tolist() == ["chr2"]


def test_labels_may_be_words_and_names_may_lack(tmp_path: Path) -> None:
    found = labelled(write(tmp_path / "x.csv", "sequence,label\nACGT,1\nAC,enhancer\n"))
    assert found.labels.tolist() == ["1", "enhancer"]
    assert found.names == ["x.csv:2", "x.csv:3"]
    assert found.groups is None


def test_whole_numbers_of_more_than_64_bits_are_words(tmp_path: Path) -> None:
    large = str(2**63)
    found = labelled(write(tmp_path / "x.csv", f"sequence,label\nACGT,1\nAC,-{large}\n"))
    assert found.labels.tolist() == ["1", f"-{large}"]


def test_several_label_columns_are_a_matrix(tmp_path: Path) -> None:
    text = "sequence,label_liver,label_brain\nACGT,1,0\nAC,1,1\n"
    found = labelled(write(tmp_path / "x.csv", text))
    assert found.labels.tolist() == [[1, 0], [1, 1]]
    assert found.columns == ["label_liver", "label_brain"]
    with pytest.raises(ValueError, match="x.csv, line 2: label_liver must be 0 or 1: got '2'"):
        labelled(write(tmp_path / "x.csv", text.replace("1,0", "2,0")))
    turned = found.by_columns(["label_brain", "label_liver"])
    assert turned.labels.tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="must be those trained on, label_liver, label_eye: got"):
        found.by_columns(["label_liver", "label_eye"])


def test_a_sequence_may_be_longer_than_the_cells_of_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", f"sequence,label\n{'ACGT' * 50_000},1\n")
    assert len(labelled(path).sequences[0]) == 200_000


def test_the_layout_of_gue_is_three_tables(tmp_path: Path) -> None:
    for name in ("test", "dev", "train"):
        write(tmp_path / f"{name}.csv", f"sequence,label\n{'A' * len(name)},1\n")
    write(tmp_path / "LICENSE", "mine")
    splits = labelled_splits(tmp_path)
    assert {k: v.sequences for k, v in splits.items()} == {
        "train": ["AAAAA"], "valid": ["AAA"], "test": ["AAAA"],
    }  # fmt: skip
    assert list(splits) == ["train", "valid", "test"]
    assert labelled(tmp_path, "valid").sequences == ["AAA"]
    with pytest.raises(ValueError, match="has the splits train, valid, test: got None"):
        labelled(tmp_path)
    with pytest.raises(ValueError, match="has the splits train, valid, test: got 'dev'"):
        labelled(tmp_path, "dev")


def test_ucis_tables_have_no_header(tmp_path: Path) -> None:
    text = "EI,    ATRINS-DONOR-521,               CCAGND\n+,S10,\t\ttactag\n"
    found = labelled(write(tmp_path / "splice.data", text))
    assert found.sequences == ["CCAGNN", "TACTAG"]
    assert found.labels.tolist() == ["EI", "+"]
    assert found.names == ["ATRINS-DONOR-521", "S10"]
    assert found.ambiguous == 1


def test_the_layout_of_genomicbenchmarks_is_a_folder_per_class(tmp_path: Path) -> None:
    for split, label, name in (
        ("train", "positive", "0"), ("train", "negative", "0"), ("test", "positive", "7"),
    ):  # fmt: skip
        write(
            tmp_path / split / label / f"{name}.txt", f"ACGT{label[0].upper()}\n".replace("P", "A")
        )
    splits = labelled_splits(tmp_path)
    assert {k: (v.labels.tolist(), v.sequences, v.names) for k, v in splits.items()} == {
        "train": (["negative", "positive"], ["ACGTN", "ACGTA"], ["0", "0"]),
        "test": (["positive"], ["ACGTA"], ["7"]),
    }


def test_its_tables_of_places_are_cut_from_the_genome(tmp_path: Path) -> None:
    genome = Genome(packed(tmp_path / "g.fa", fasta({"1": "AACCGGTTAC", "chrX": "TTG"}), "plain"))
    folder = tmp_path / "set"
    for split, label, text in (
        ("train", "positive", "0,chr1,0,4,+\n1,chr1,1,4,-\n"), ("train", "negative", "2,chrX,0,3,+\n"),
    ):  # fmt: skip
        path = folder / split / f"{label}.csv.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(f"id,region,start,end,strand\n{text}".encode()))
    write(folder / "metadata.yaml", "version: 0")
    found = labelled(folder, genome=genome)
    assert found.sequences == ["TTG", "AACC", "GGT"]
    assert found.labels.tolist() == ["negative", "positive", "positive"]
    assert found.groups is not None
    assert found.groups.tolist() == ["chrX", "chr1", "chr1"]
    with pytest.raises(
        ValueError, match=r"negative.csv.gz holds places in a genome.* give its gen"
    ):
        labelled(folder)
    path.write_bytes(gzip.compress(b"id,region,start,end,strand\n2,chrX,0,4,+\n"))
    with pytest.raises(ValueError, match=r"negative.csv.gz, line 2: 0-4 reaches beyond chrX"):
        labelled(folder, genome=genome)


def test_a_fasta_file_may_stand_for_a_class(tmp_path: Path) -> None:
    write(tmp_path / "promoter.fa", ">a\nAC\n>b\nGG\n")
    packed(tmp_path / "other.fasta.gz", ">c\nTT\n", "gzip")
    found = labelled(tmp_path)
    assert found.labels.tolist() == ["other", "promoter", "promoter"]
    assert found.names == ["c", "a", "b"]


REFUSED = {
    "empty": ("x.csv", "", "x.csv is empty"),
    "header alone": ("x.csv", "sequence,label\n", "x.csv is empty"),
    "no header": ("x.csv", "ACGT,1\nACGG,0\n", "x.csv must have the columns sequence and label"),
    "no labels": ("x.csv", "sequence,score\nACGT,1\n", "it has 'sequence', 'score'"),
    "no sequences": ("x.tsv", "name\tlabel\nACGT\t1\n", "it has 'name', 'label'"),
    "label missing": ("x.csv", "sequence,label\nAC,1\nAC,\n", "x.csv, line 3 has no label"),
    "sequence missing": ("x.csv", "sequence,label\nAC,1\n,1\n", "x.csv, line 3 has no sequence"),
    "ragged": (
        "x.csv",
        "sequence,label\nAC,1\nAC\n",
        "x.csv, line 3 must have 2 columns: it has 1",
    ),
    "protein": ("x.csv", "sequence,label\nAC,1\nMEL,1\n", "x.csv, line 3, position 2: 'E'"),
    "label NaN": (
        "x.csv",
        "sequence,label\nAC,1\nAC,NaN\n",
        "x.csv, line 3 has no label: got 'NaN'",
    ),
    "label NA": (
        "x.csv",
        "sequence,label\nAC,yes\nAC,NA\n",
        "x.csv, line 3 has no label: got 'NA'",
    ),
    "short protein": (
        "x.csv",
        "sequence,label\nAC,1\nMKV,1\n",
        "x.csv, line 3: 3 of 3 letters are",
    ),
    "gap": ("x.data", "EI,a,AC\nEI,b,A-C\n", "x.data, line 2, position 2: '-'"),
    "UCI ragged": ("x.data", "EI,a,AC\nEI,b\n", "x.data, line 2 must have 3 columns: it has 2"),
    "FASTA": ("x.fa", ">a\nAC\n", "x.fa has no labels"),
}


@pytest.mark.parametrize(("name", "content", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_tables_are_refused(tmp_path: Path, name: str, content: str, sentence: str) -> None:
    with pytest.raises(ValueError, match="x.") as error:
        labelled(write(tmp_path / name, content))
    assert sentence in str(error.value)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        labelled(tmp_path / "missing")
    with pytest.raises(ValueError, match="holds neither train and test nor classes"):
        labelled(tmp_path)
    (tmp_path / "positive").mkdir()
    with pytest.raises(ValueError, match="is empty: it has no sequence"):
        labelled(tmp_path)
    # Another class, and what tools leave behind, do not hide that one is missing.
    write(tmp_path / "negative/0.txt", "ACGT\n")
    (tmp_path / ".cache").mkdir()
    with pytest.raises(ValueError, match="The class .*positive is empty"):
        labelled(tmp_path)
    write(tmp_path / "positive/0.txt", "\n")
    with pytest.raises(ValueError, match="0.txt has no sequence"):
        labelled(tmp_path)


def test_a_data_set_of_the_hub_is_read_by_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: dict[str, list[dict[str, Any]]] = {
        "train": [{"sequence": "acgt", "label": 1, "name": "a"}],
        "test": [{"sequence": "AC", "label": 0, "name": "b"}],
    }
    monkeypatch.setattr(module, "hub_splits", lambda source: list(rows))
    monkeypatch.setattr(module, "hub_rows", lambda source, split: iter(rows[split]))
    splits = labelled_splits("hf:some/set:task")
    assert {k: (v.sequences, v.labels.tolist(), v.names) for k, v in splits.items()} == {
        "train": (["ACGT"], [1], ["a"]), "test": (["AC"], [0], ["b"]),
    }  # fmt: skip
    rows["test"] = [{"text": "x"}]
    with pytest.raises(ValueError, match="hf:some/set, test, row 0 must have the columns sequence"):
        labelled("hf:some/set", "test")
    rows["test"] = [{"sequence": "A", "label": None}]
    with pytest.raises(ValueError, match="hf:some/set, test, row 0 has no label"):
        labelled("hf:some/set", "test")


class Hub:
    """Stands for the library of data sets."""

    def __init__(self, fail: bool = False) -> None:
        self.fail = fail

    def get_dataset_split_names(self, name: str, config: str | None) -> list[str]:
        if self.fail:
            raise RuntimeError("no such set.\nmore words")
        return [f"{name}-{config}", "test"]

    def load_dataset(
        self, name: str, config: str | None, split: str, streaming: bool
    ) -> list[dict[str, Any]]:
        if self.fail:
            raise RuntimeError("no such set.\nmore words")
        assert streaming
        return [{"of": (name, config, split)}]


def test_names_of_the_hub_have_up_to_three_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_datasets", Hub)
    assert hub.hub_splits("hf:a/b") == ["a/b-None", "test"]
    assert hub.hub_splits("hf:a/b:dev") == ["dev"]
    assert hub.hub_splits("hf:a/b:en:dev") == ["dev"]
    assert list(hub.hub_rows("hf:a/b:en:dev", "dev")) == [{"of": ("a/b", "en", "dev")}]
    for wrong in ("hf:", "hf:a::b", "hf:a:b:c:d"):
        with pytest.raises(ValueError, match="A data set must be hf:NAME"):
            hub.hub_splits(wrong)
    monkeypatch.setattr(hub, "_datasets", lambda: Hub(fail=True))
    for ask in (lambda: hub.hub_splits("hf:a"), lambda: list(hub.hub_rows("hf:a", "x"))):
        with pytest.raises(
            ConnectionError, match="^The data set 'a' could not be opened: no such set"
        ):
            ask()
