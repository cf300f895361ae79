"""`titans dna`: from labelled sequences and a genome to calls, variants, mutations, vectors and bits."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from console import Titans, assert_refused, contents
from dna_files import bases, fasta, packed

from titans_domains.config import override
from titans_domains.dna import DOMAIN
from titans_domains.dna.calls import class_names
from titans_domains.dna.genome import Genome
from titans_domains.dna.reading import reverse_complement
from titans_domains.dna.task import load_classifier, load_model, split_examples
from titans_domains.runs import load_run_table, train_run

CPU = torch.device("cpu")
SMALL = (
    "model.backbone.dim=16",
    "model.backbone.num_layers=1",
    "model.backbone.memory.num_heads=2",
    "model.stem.channels=8",
    "model.stem.depth=1",
    "train.batch_size=4",
    "train.steps=2",
    "train.warmup=1",
    "train.valid_every=1",
    "train.checkpoint_every=2",
)
CLASSIFIER = ("model.head.hidden=8", "data.held_out=0.25")
CAUSAL = ("data.seq_len=32", "loss.order=2")
CONTIGS = {"chr1": bases(300, seed=1), "chr2": "acgt" * 10 + "RN" + bases(18, seed=2)}


def settings(*changes: str) -> list[str]:
    return [part for change in (*SMALL, *changes) for part in ("--set", change)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, a classifier of single bases, one of 6-mers, and a causal model."""
    folder = tmp_path_factory.mktemp("dna")
    rows = [f"{bases(40, seed=i)},{'yes' if i % 2 else 'no'}\n" for i in range(24)]
    (folder / "labelled.csv").write_text("sequence,label\n" + "".join(rows))
    packed(folder / "genome.fa", fasta(CONTIGS, 50), "plain")
    packed(folder / "genome.fa.gz", fasta(CONTIGS, 50), "gzip")
    packed(folder / "genome.fa.bgz", fasta(CONTIGS, 50), "bgzip")
    for name, preset, source, changes in (
        ("yesno", "tiny", "labelled.csv", CLASSIFIER),
        ("kmers", "tiny", "labelled.csv", (*CLASSIFIER, "data.tokenizer=kmer")),
        ("causal", "causal", "genome.fa", CAUSAL),
    ):
        data = f"data.source={json.dumps(str(folder / source))}"
        config = override(DOMAIN.presets[preset], [*SMALL, *changes, data])
        train_run(DOMAIN, config, folder / name, device=CPU)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them as the working folder."""
    folder = tmp_path / "here"
    shutil.copytree(made, folder)
    for config in folder.glob("*/config.json"):
        config.write_text(config.read_text().replace(str(made), str(folder)))
    monkeypatch.chdir(folder)
    return folder


def test_training_makes_a_run_that_is_evaluated(here: Path, titans: Titans) -> None:
    tiny = settings(*CLASSIFIER)
    done = titans("dna", "train", "--data", "labelled.csv", "--seed", "3", *tiny, "--out", "new")
    assert (done.code, done.out) == (0, "new\n"), done.err
    assert "training 2/2" in done.err
    config, _ = load_run_table(here / "new", DOMAIN)
    assert (config.seed, config.kind, config.data.source) == (
        3,
        "train",
        str(here / "labelled.csv"),
    )
    done = titans("dna", "eval", "new", "--json")
    table = json.loads(done.out)
    assert (table["split"], table["sequences"], table["classes"]) == (
        "validation", 6, {"no": 3, "yes": 3},
    )  # fmt: skip
    for figure in table["figures"].values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    lines = titans("dna", "eval", "new").out.splitlines()
    assert lines[0] == "validation: 6 sequences"
    assert lines[1].startswith(f"accuracy  {table['figures']['accuracy']['value']:.4f}  (95 %: ")
    other = json.loads(titans("dna", "eval", "new", "--json", "--data", "labelled.csv").out)
    assert (other["split"], other["sequences"]) == ("all", 24)


def test_a_figure_that_is_not_there_is_null(here: Path, titans: Titans) -> None:
    (here / "yes.csv").write_text(f"sequence,label\n{bases(40)},yes\n{bases(40, seed=1)},yes\n")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    done = titans("dna", "eval", "yesno", "--data", "yes.csv", "--json")
    table = json.loads(done.out, parse_constant=refuse)
    assert table["figures"]["auroc"] == {"value": None, "low": None, "high": None}
    assert "auroc     nan" in titans("dna", "eval", "yesno", "--data", "yes.csv").out


def test_the_accuracy_that_is_possible_on_the_embedded_data_is_said(
    here: Path, titans: Titans
) -> None:
    done = titans("dna", "train", *settings("model.head.hidden=8"), "--set", "train.steps=1")
    assert (done.code, done.out) == (0, "runs/dna-train\n"), done.err
    assert "The best possible (Bayes) accuracy on the made promoters is 0.97" in done.err
    done = titans("dna", "train", *settings("train.steps=1"), "--data", "embedded")
    assert_refused(done, "runs/dna-train is there already")


def test_duplicates_between_splits_are_said(here: Path, titans: Titans) -> None:
    (here / "set").mkdir()
    text = (here / "labelled.csv").read_text()
    (here / "set/train.csv").write_text(text + f"{bases(40, seed=2)},no\n")
    other = f"{reverse_complement(bases(40, seed=5))},yes\n{'ACGT' * 10},no\n"
    (here / "set/test.csv").write_text("sequence,label\n" + other)
    done = titans("dna", "train", "--data", "set", *settings(*CLASSIFIER), "--out", "new")
    assert done.code == 0
    assert (
        "1 of 2 sequences of test stand in train too (1 of them as reverse complements)" in done.err
    )
    assert "1 of 25 sequences of train came before already" in done.err
    assert titans("dna", "eval", "new").out.startswith("test: 2 sequences\n")


def test_other_sources_are_evaluated_by_a_split_that_is_not_trained_on(
    here: Path, titans: Titans
) -> None:
    text = (here / "labelled.csv").read_text()
    train = split_examples(load_run_table(here / "yesno", DOMAIN)[0].data, 0)[0].sequences
    known = f"{train[0]},no\n{reverse_complement(train[1])},yes\n"
    (here / "set").mkdir()
    (here / "set/train.csv").write_text(text)
    done = titans("dna", "eval", "yesno", "--data", "set")
    assert_refused(done, "set has no split but train")
    (here / "set/dev.csv").write_text(f"sequence,label\n{'ACGR' * 9},no\n{known}")
    done = titans("dna", "eval", "yesno", "--data", "set")
    assert done.out.startswith("valid: 3 sequences\n")
    assert (
        "2 of 3 sequences of valid of set stand in what yesno was trained on too (1 of" in done.err
    )
    assert "9 ambiguous bases (IUPAC codes) were read as N." in done.err
    (here / "set/test.csv").write_text(f"sequence,label\n{'ACGT' * 9},no\n{'ACCT' * 9},yes\n")
    done = titans("dna", "eval", "yesno", "--data", "set", "--json")
    assert json.loads(done.out)["split"] == "test"
    assert "trained on" not in done.err
    done = titans("dna", "eval", "yesno", "--data", "labelled.csv", "--json")
    assert "18 of 24 sequences of labelled.csv stand in what yesno was trained on" in done.err
    (here / "labelled.csv").unlink()
    done = titans("dna", "eval", "yesno", "--data", "set")
    assert done.code == 0
    assert "Whether yesno was trained on some of them could not be counted: There is no" in done.err


def test_a_run_goes_on(here: Path, titans: Titans) -> None:
    done = titans("dna", "train", "--resume", "--out", "yesno")
    assert (done.code, done.out) == (0, "yesno\n"), done.err
    done = titans("dna", "train", "--resume", "--force", "--out", "yesno")
    assert_refused(done, "give one of them")


def test_a_classifier_begins_from_a_pretrained_run(here: Path, titans: Titans) -> None:
    some = [part for change in (*CLASSIFIER, *SMALL[5:], "train.lr=1e-12", "train.weight_decay=0")
            for part in ("--set", change)]  # fmt: skip
    ask = ("dna", "train", "--data", "labelled.csv", "--pretrained", "causal", *some, "--out")
    done = titans(*ask, "new")
    assert (done.code, done.out) == (0, "new\n"), done.err
    config, _ = load_run_table(here / "new", DOMAIN)
    theirs = load_model(here / "causal", CPU).model.encoder
    assert (config.pretrained, config.model.backbone) == (
        str(here / "causal"), theirs.config.backbone,
    )  # fmt: skip
    ours = dict(load_classifier(here / "new", CPU).networks_[0].encoder.named_parameters())
    for name, weights in theirs.named_parameters():
        assert torch.allclose(ours[name], weights, atol=1e-6)
    done = titans(*ask, "other", "--mixer", "mag")
    assert_refused(done, "The encoder must be that of")
    assert_refused(
        titans(*ask, "new", "--resume", "--pretrained", "yesno"), "differs in pretrained"
    )
    done = titans("dna", "train", "--pretrained", "yesno", "--out", "other")
    assert_refused(done, "yesno is a classifier: give a run of `titans dna pretrain`")
    assert_refused(
        titans("dna", "pretrain", "--set", "pretrained=causal", "--out", "other"),
        "pretrained is for classifiers",
    )
    # What it began from is not needed any more.
    shutil.rmtree(here / "causal")
    assert titans("dna", "train", "--resume", "--out", "new").code == 0


def test_places_are_looked_up_in_a_genome_and_chromosomes_held_out(
    here: Path, titans: Titans
) -> None:
    for split, starts in (("train", range(0, 20, 4)), ("test", [3, 21])):
        for name, shift in (("yes", 0), ("no", 2)):
            (here / "places" / split).mkdir(parents=True, exist_ok=True)
            lines = [f"{c}:{s},{c},{s + shift},{s + shift + 12},+\n"
                     for c in ("chr1", "chr2") for s in starts]  # fmt: skip
            text = "id,region,start,end,strand\n" + "".join(lines)
            (here / f"places/{split}/{name}.csv").write_text(text)
    tiny = settings(*CLASSIFIER)
    ask = ("dna", "train", "--data", "places", *tiny)
    assert_refused(titans(*ask, "--out", "new"), "give its genome (--genome) too")
    genome = ("--genome", "genome.fa.bgz")
    done = titans(*ask, *genome, "--valid-chromosomes", "chr2", "--out", "new")
    assert (done.code, done.out) == (0, "new\n"), done.err
    config, _ = load_run_table(here / "new", DOMAIN)
    assert (config.data.genome, config.data.valid_chromosomes) == (
        str(here / "genome.fa.bgz"), ("chr2",),
    )  # fmt: skip
    train, valid = split_examples(config.data, config.seed)
    assert valid is not None
    assert (set(train.groups), set(valid.groups)) == ({"chr1"}, {"chr2"})
    assert train.sequences[-1] == CONTIGS["chr1"][16:28]
    table = json.loads(titans("dna", "eval", "new", "--json").out)
    assert (table["split"], table["sequences"]) == ("test", 8)
    other = titans("dna", "eval", "new", "--data", "places", "--genome", "genome.fa", "--json")
    assert json.loads(other.out)["figures"] == table["figures"]
    assert_refused(
        titans(*ask, *genome, "--valid-chromosomes", "chr7", "--out", "x"), "no row of 'chr7'"
    )
    assert_refused(titans("dna", "eval", "causal", *genome), "--genome is for classifiers")
    (here / "places/dev").mkdir()
    for name in ("yes", "no"):
        shutil.copy(here / f"places/test/{name}.csv", here / "places/dev")
    assert_refused(
        titans(*ask, *genome, "--valid-chromosomes", "chr2", "--out", "x"),
        "has a validation split of its own",
    )


def test_pretraining_and_bits_per_base(here: Path, titans: Titans) -> None:
    done = titans("dna", "pretrain", "--data", "genome.fa.gz", *settings(*CAUSAL), "--out", "new")
    assert (done.code, done.out) == (0, "new\n"), done.err
    table = json.loads(titans("dna", "eval", "new", "--json").out)
    assert table["bases"] == 36
    assert list(table["bits_per_base"]) == ["carried", "frozen", "reset(32)"]
    assert list(table["floors"]) == ["order-7 Markov model"]
    assert all(1 < bits < 3 for bits in table["bits_per_base"].values())
    lines = titans("dna", "eval", "new").out.splitlines()
    assert lines[0] == f"carried               {table['bits_per_base']['carried']:.4f} bits/base"
    other = titans("dna", "eval", "new", "--data", "genome.fa", "--json").out
    assert json.loads(other)["bases"] == 360
    masked = [*settings("data.seq_len=32"), "--kind", "masked", "--out", "masked"]
    done = titans("dna", "pretrain", "--data", "genome.fa", *masked)
    assert (done.code, done.out) == (0, "masked\n"), done.err
    assert list(json.loads(titans("dna", "eval", "masked", "--json").out)["bits_per_base"]) == [
        "masked"
    ]


def table_of(text: str) -> list[dict[str, str]]:
    header, *lines = text.splitlines()
    return [dict(zip(header.split("\t"), line.split("\t"), strict=True)) for line in lines]


def test_records_are_classified_in_their_order(here: Path, titans: Titans) -> None:
    reads = {f"r{i}": bases(20 + 7 * i, seed=i) for i in range(9)}
    text = "".join(f"@{name} x\n{s}\n+\n{'I' * len(s)}\n" for name, s in reads.items())
    packed(here / "reads.fastq.gz", text, "gzip")
    done = titans("dna", "classify", "yesno", "reads.fastq.gz")
    assert done.code == 0
    rows = table_of(done.out)
    model = load_classifier(here / "yesno", CPU)
    assert class_names(model) == ["no", "yes"]
    wanted = model.predict_proba(list(reads.values()))
    assert [row["name"] for row in rows] == list(reads)
    assert [int(row["length"]) for row in rows] == [len(s) for s in reads.values()]
    for row, (no, yes) in zip(rows, wanted, strict=True):
        assert float(row["p_no"]) == pytest.approx(no, abs=1e-5)
        assert float(row["p_yes"]) == pytest.approx(yes, abs=1e-5)
        assert row["prediction"] == ("yes" if yes > no else "no")
    done = titans("dna", "classify", "yesno", "reads.fastq.gz", "--out", "calls.jsonl", "--json")
    assert (done.code, done.out) == (0, "calls.jsonl\n")
    lines = [json.loads(line) for line in (here / "calls.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == list(reads)
    assert lines[3]["p_yes"] == pytest.approx(wanted[3, 1], abs=1e-5)


def test_windows_and_intervals_are_classified_on_their_strands(here: Path, titans: Titans) -> None:
    model = load_classifier(here / "yesno", CPU)
    genome = Genome(here / "genome.fa")
    done = titans("dna", "classify", "yesno", "genome.fa.gz", "--window", "40", "--step", "30")
    assert "1 ambiguous base (IUPAC code) was read as N." in done.err
    rows = table_of(done.out)
    assert [int(row["start"]) for row in rows if row["contig"] == "chr2"] == [0, 20]
    for row in rows:
        assert int(row["end"]) - int(row["start"]) == 40
        sequence = genome.fetch(row["contig"], int(row["start"]), int(row["end"]))
        chance = model.predict_proba([sequence])[0, 1]
        assert float(row["p_yes"]) == pytest.approx(chance, abs=1e-5)
    (here / "x.bed").write_text("chr2\t0\t40\tforward\t0\t+\nchr1\t100\t140\tback\t0\t-\n")
    for name in ("genome.fa", "genome.fa.bgz"):
        rows = table_of(titans("dna", "classify", "yesno", name, "--bed", "x.bed").out)
        assert [(row["name"], row["strand"]) for row in rows] == [("forward", "+"), ("back", "-")]
        back = reverse_complement(CONTIGS["chr1"][100:140])
        assert float(rows[1]["p_yes"]) == pytest.approx(model.predict_proba([back])[0, 1], abs=1e-5)


def test_only_one_class_is_written_as_bed_or_gff3(here: Path, titans: Titans) -> None:
    window = ("classify", "yesno", "genome.fa", "--window", "6")
    rows = table_of(titans("dna", *window).out)
    for name in ("yes", "no"):
        hits = [row for row in rows if row["prediction"] == name]
        bed = titans("dna", *window, "--only", name, "--format", "bed").out.splitlines()
        assert [line.split("\t")[:4] for line in bed] == [
            [row["contig"], row["start"], row["end"], name] for row in hits
        ]
        gff = titans("dna", *window, "--only", name, "--format", "gff3").out.splitlines()
        assert gff[0] == "##gff-version 3"
        assert [line.split("\t")[3:5] for line in gff[1:]] == [
            [str(int(row["start"]) + 1), row["end"]] for row in hits
        ]


def test_gaps_of_a_genome_are_no_hits_and_intervals_keep_their_names(
    here: Path, titans: Titans
) -> None:
    (here / "gap.fa").write_text(f">a\n{'ACGTTGCA' * 2}{'N' * 24}{'TTGACCGA' * 2}\n")
    done = titans("dna", "classify", "yesno", "gap.fa", "--window", "8")
    assert [(row["start"], row["end"]) for row in table_of(done.out)] == [
        ("0", "8"), ("8", "16"), ("40", "48"), ("48", "56"),
    ]  # fmt: skip
    assert "3 sequences or windows of nothing but N were left out." in done.err
    (here / "gap.bed").write_text("a\t0\t8\tfirst\na\t20\t30\tgap\na\t41\t50\tlast\n")
    ask = ("dna", "classify", "yesno", "gap.fa", "--bed", "gap.bed", "--format")
    bed = [line.split("\t") for line in titans(*ask, "bed").out.splitlines()]
    assert [cells[:3] + cells[6:] for cells in bed] == [
        ["a", "0", "8", "first"], ["a", "41", "50", "last"],
    ]  # fmt: skip
    assert "Name=first;class=" in titans(*ask, "gff3").out


def test_a_vcf_without_variants_gives_a_table_without_rows(here: Path, titans: Titans) -> None:
    (here / "none.vcf").write_text("##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\n")
    done = titans("dna", "score-variants", "yesno", "none.vcf", "--genome", "genome.fa")
    assert done.code == 0
    assert done.out.count("\n") == 1
    assert "none.vcf holds no variant to score." in done.err


def test_a_table_without_a_hit_has_its_header(here: Path, titans: Titans) -> None:
    (here / "one.fa").write_text(">a\nACGTACGT\n")
    ask = ("dna", "classify", "yesno", "one.fa")
    other = {"no": "yes", "yes": "no"}[table_of(titans(*ask).out)[0]["prediction"]]
    for form, header in (
        ((), "name\tlength\tprediction\tp_no\tp_yes\n"),
        (("--window", "8"), "contig\tstart\tend\tname\tstrand\tprediction\tp_no\tp_yes\n"),
        (("--format", "gff3"), "##gff-version 3\n"),
        (("--format", "bed"), ""),
        (("--json",), ""),
    ):
        found = titans(*ask, "--only", other, *form)
        assert (found.code, found.out) == (0, header)
    (here / "gone.vcf").write_text(VCF + f"chr1\t150\t.\t{CONTIGS['chr1'][149]}\t<DEL>\n")
    found = titans("dna", "score-variants", "yesno", "gone.vcf", "--genome", "genome.fa")
    assert found.code == 0
    assert found.out.startswith("contig\tposition\tid\tref\talt\tp_yes_ref\tp_yes_alt\tp_yes_diff")
    assert found.out.count("\n") == 1


VCF = "#CHROM\tPOS\tID\tREF\tALT\n"


def test_variants_are_scored_in_the_middle_of_their_window(here: Path, titans: Titans) -> None:
    chr1 = CONTIGS["chr1"]
    snv = "A" if chr1[149] != "A" else "C"
    text = f"chr1\t150\trs\t{chr1[149]}\t{snv},<DEL>,{chr1[149]}TT\n"
    text += f"chr1\t200\t.\t{chr1[199:203]}\t{chr1[199]}\n"
    packed(here / "x.vcf.gz", VCF + text, "bgzip")
    done = titans("dna", "score-variants", "yesno", "x.vcf.gz", "--genome", "genome.fa.bgz")
    assert done.code == 0
    assert "1 allele was left out" in done.err
    rows = table_of(done.out)
    model = load_classifier(here / "yesno", CPU)
    # As long as the sequences trained on: 40.
    ref = chr1[129:169]
    alts = [
        chr1[129:149] + snv + chr1[150:169],
        chr1[129:150] + "TT" + chr1[150:167],
        chr1[179:200] + chr1[203:222],
    ]
    for row, before, after in zip(rows, [ref, ref, chr1[179:219]], alts, strict=True):
        first, second = model.predict_proba([before, after])[:, 1]
        assert float(row["p_yes_ref"]) == pytest.approx(first, abs=1e-5)
        assert float(row["p_yes_alt"]) == pytest.approx(second, abs=1e-5)
        assert float(row["p_yes_diff"]) == pytest.approx(second - first, abs=1e-5)
    assert [row["position"] for row in rows] == ["150", "150", "200"]
    likely = titans(
        "dna", "score-variants", "causal", "x.vcf.gz", "--genome", "genome.fa", "--json"
    )
    first = json.loads(likely.out.splitlines()[0])
    pretrained = load_model(here / "causal", CPU)
    before, after = pretrained.log_likelihood([chr1[133:165], chr1[133:149] + snv + chr1[150:165]])
    assert first["log_likelihood_diff"] == pytest.approx(after - before, abs=1e-4)


def test_a_likelihood_near_a_contig_s_end_is_of_as_many_bases(here: Path, titans: Titans) -> None:
    chr1 = CONTIGS["chr1"]
    (here / "x.vcf").write_text(
        VCF + f"chr1\t290\t.\t{chr1[289:295]}\t{chr1[289]}\nchr1\t3\t.\t{chr1[2]}\t{chr1[2]}GG\n"
    )
    done = titans("dna", "score-variants", "causal", "x.vcf", "--genome", "genome.fa", "--json")
    end, start = (json.loads(line) for line in done.out.splitlines())
    # 16 bases before the variant, and of the 11 from it on those that the deletion leaves.
    assert (end["bases_ref"], end["bases_alt"]) == (22, 22)
    model = load_model(here / "causal", CPU)
    before, after = model.log_likelihood([chr1[273:295], chr1[273:290] + chr1[295:]])
    assert end["log_likelihood_ref"] == pytest.approx(before, abs=1e-4)
    assert end["log_likelihood_diff"] == pytest.approx(after - before, abs=1e-4)
    assert (start["bases_ref"], start["bases_alt"]) == (18, 18)


def test_ambiguous_bases_are_counted_wherever_they_are_read(here: Path, titans: Titans) -> None:
    said = "ambiguous bases (IUPAC codes) were read as N."
    (here / "x.fa").write_text(f">a\n{bases(40)}RY{bases(40, seed=1)}\n")
    (here / "x.vcf").write_text(VCF + "a\t40\t.\t" + f"{bases(40)[39]}\tS\n")
    for command in (
        ("embed", "yesno", "x.fa", "--out", "x.npz"),
        ("read", "causal", "x.fa"),
        ("saturate", "yesno", "x.fa", "--from", "5", "--to", "5", "--class", "no"),
        ("eval", "causal", "--data", "x.fa"),
        ("pretrain", "--data", "x.fa", *settings(*CAUSAL, "data.held_out=0"), "--out", "new"),
    ):
        done = titans("dna", *command)
        assert (done.code, f"2 {said[:-1]}" in done.err) == (0, True), done.err
    done = titans("dna", "score-variants", "yesno", "x.vcf", "--genome", "x.fa")
    assert f"3 {said}" in done.err


def test_an_allele_that_is_too_long_costs_no_other(here: Path, titans: Titans) -> None:
    chr1 = CONTIGS["chr1"]
    lines = [f"chr1\t{at + 1}\t.\t{chr1[at : at + ref]}\t{alt}\n" for at, ref, alt in (
        (99, 1, "A" * 20), (99, 1, "A" * 21), (149, 21, "A"), (199, 1, "<DEL>"), (209, 20, "A"))
    ]  # fmt: skip
    (here / "x.vcf").write_text(VCF + "".join(lines))
    ask = ("dna", "score-variants", "yesno", "x.vcf", "--genome", "genome.fa")
    done = titans(*ask)
    assert done.code == 0
    assert [row["position"] for row in table_of(done.out)] == ["100", "210"]
    assert "1 allele was left out: it is no sequence (<DEL>, *, ...)." in done.err
    assert (
        "2 alleles were left out: they are longer than half of a window of 40 bases, the first in line 3: "
        "give a larger --window" in done.err
    )
    assert len(table_of(titans(*ask, "--window", "42").out)) == 4


def test_a_sequence_is_saturated_into_a_table_and_a_picture(here: Path, titans: Titans) -> None:
    sequence = bases(40, seed=9)
    (here / "x.fa").write_text(f">a\nACGT\n>b\n{sequence}\n")
    options = ("--record", "b", "--from", "5", "--to", "7", "--class", "no")
    done = titans("dna", "saturate", "yesno", "x.fa", *options, "--picture", "x.png")
    assert done.code == 0
    assert done.err.endswith("x.png\n")
    rows = table_of(done.out)
    assert [int(row["position"]) for row in rows] == [5, 5, 5, 6, 6, 6, 7, 7, 7]
    model = load_classifier(here / "yesno", CPU)
    base = model.predict_proba([sequence])[0, 0]
    for row in rows:
        at = int(row["position"]) - 1
        changed = sequence[:at] + row["alt"] + sequence[at + 1 :]
        chance = model.predict_proba([changed])[0, 0]
        assert float(row["p_no"]) == pytest.approx(chance, abs=1e-5)
        assert float(row["diff"]) == pytest.approx(chance - base, abs=1e-5)
    assert (here / "x.png").read_bytes().startswith(b"\x89PNG")
    done = titans("dna", "saturate", "causal", "x.fa", "--record", "b", "--out", "x.tsv")
    assert (done.code, done.out) == (0, "x.tsv\n")
    assert len(table_of((here / "x.tsv").read_text())) == 120


def test_vectors_of_classifiers_and_pretrained_models(here: Path, titans: Titans) -> None:
    for run, model in (("yesno", load_classifier(here / "yesno", CPU)),
                       ("causal", load_model(here / "causal", CPU))):  # fmt: skip
        done = titans("dna", "embed", run, "genome.fa", "--out", f"{run}.npz")
        assert (done.code, done.out) == (0, f"{run}.npz\n")
        with np.load(here / f"{run}.npz") as file:
            assert file["names"].tolist() == ["chr1", "chr2"]
            wanted = model.embed([CONTIGS["chr1"]])[0]
            np.testing.assert_allclose(file["vectors"][0], wanted, rtol=1e-4, atol=1e-5)


def test_a_genome_is_read_with_the_memory_carried(here: Path, titans: Titans) -> None:
    model = load_model(here / "causal", CPU)
    done = titans("dna", "read", "causal", "genome.fa.gz", "--window", "100", "--picture", "x.png")
    assert done.code == 0
    rows = table_of(done.out)
    assert [(r["contig"], r["start"], r["end"], r["bases"]) for r in rows] == [
        ("chr1", "0", "100", "100"), ("chr1", "100", "200", "100"), ("chr1", "200", "300", "100"),
        ("chr2", "0", "60", "58"),
    ]  # fmt: skip
    (reading,) = model.bits_per_base([CONTIGS["chr1"]])
    for number in range(3):
        mean = reading.bits[100 * number : 100 * number + 100].mean()
        assert float(rows[number]["bits_per_base"]) == pytest.approx(mean, abs=1e-4)
    assert "bits/base over 358 bases" in done.err
    assert (here / "x.png").read_bytes().startswith(b"\x89PNG")
    frozen = titans("dna", "read", "causal", "genome.fa", "--mode", "frozen", "--out", "x.tsv")
    assert frozen.out == "x.tsv\n"
    (frozen_bits,) = model.bits_per_base([CONTIGS["chr1"]], mode="frozen")
    row, _ = table_of((here / "x.tsv").read_text())
    assert float(row["bits_per_base"]) == pytest.approx(frozen_bits.bits.mean(), abs=1e-4)
    assert frozen_bits.bits.mean() != pytest.approx(reading.bits.mean(), abs=1e-6)


def write_bad_files(here: Path) -> None:
    (here / "empty.fa").write_bytes(b"")
    (here / "header.fa").write_text(">a\nACGTACGT\n>b\n")
    (here / "protein.fa").write_text(">a\nACGTACGT\n>b\nMELVIN\n")
    (here / "peptide.fa").write_text(">a\nMKVSH\n")
    (here / "short.fa").write_text(">a\nACGTACGT\n>b\nAC\n")
    (here / "cut.fa.gz").write_bytes((here / "genome.fa.gz").read_bytes()[:-20])
    (here / "one.csv").write_text("sequence,label\nACGT,1\nACGG,1\n")
    (here / "unlabelled.csv").write_text("sequence,name\nACGT,1\n")
    (here / "beyond.bed").write_text("chr2\t0\t40\nchr2\t20\t61\n")
    (here / "mismatch.vcf").write_text(VCF + "chr2\t1\t.\tA\tC\nchr2\t2\t.\tA\tC\n")
    (here / "contig.vcf").write_text(VCF + "chrX\t1\t.\tA\tC\n")
    (here / "mine.tsv").write_text("years of work")


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "empty": (("classify", "yesno", "empty.fa"), "empty.fa is empty"),
    "missing": (("classify", "yesno", "no.fa"), "There is no file 'no.fa'"),
    "folder": (("classify", "yesno", "."), ". is a folder"),
    "not a run": (("classify", "empty.fa", "genome.fa"), "There is no folder 'empty.fa'"),
    "pretrained": (("classify", "causal", "genome.fa"), "causal is a run of kind 'causal'"),
    "protein": (
        ("classify", "yesno", "protein.fa"), "protein.fa, line 3, record 'b', position 2: 'E' is no",
    ),
    "header": (("classify", "yesno", "header.fa"), "header.fa, line 3, record 'b' has no sequence"),
    "truncated": (("classify", "yesno", "cut.fa.gz"), "cut.fa.gz is cut short or damaged"),
    "truncated windows": (
        ("classify", "yesno", "cut.fa.gz", "--window", "40"), "cut.fa.gz is cut short or damaged",
    ),
    "k-mers": (("classify", "kmers", "short.fa"), "short.fa, line 3, record 'b' has 2 bases"),
    "k-mers embedded": (
        ("embed", "kmers", "short.fa", "--out", "x.npz"), "short.fa, line 3, record 'b' has 2 bases",
    ),
    "k-mers saturated": (
        ("saturate", "kmers", "short.fa", "--record", "b"), "record 'b' has 2 bases, and the",
    ),
    "format": (("classify", "yesno", "genome.fa", "--format", "vcf"), "--format must be one of tsv"),
    "json and format": (
        ("classify", "yesno", "genome.fa", "--format", "bed", "--json"), "give one of them",
    ),
    "two ways": (
        ("classify", "yesno", "genome.fa", "--bed", "beyond.bed", "--window", "9"), "give one of them",
    ),
    "step alone": (("classify", "yesno", "genome.fa", "--step", "9"), "give --window too"),
    "step": (
        ("classify", "yesno", "genome.fa", "--window", "9", "--step", "10"), "between 1 and its size",
    ),
    "no such class": (("classify", "yesno", "genome.fa", "--only", "maybe"), "--only must be one of no"),
    "gzip": (
        ("classify", "yesno", "genome.fa.gz", "--bed", "beyond.bed"), "bgzip > genome.fa.bgz",
    ),
    "beyond": (
        ("classify", "yesno", "genome.fa", "--bed", "beyond.bed"),
        "beyond.bed, line 2: 20-61 reaches beyond chr2, which has 60 bases",
    ),
    "there already": (
        ("classify", "yesno", "genome.fa", "--out", "mine.tsv"), "mine.tsv is there already",
    ),
    "no folder": (("classify", "yesno", "genome.fa", "--out", "no/x.tsv"), "There is no folder no"),
    "mismatch": (
        ("score-variants", "yesno", "mismatch.vcf", "--genome", "genome.fa"),
        "mismatch.vcf, line 3: REF is A, but genome.fa has C at chr2:2",
    ),
    "contig": (
        ("score-variants", "yesno", "contig.vcf", "--genome", "genome.fa"),
        "contig.vcf, line 2: genome.fa has no contig 'chrX': it has chr1, chr2",
    ),
    "window of variants": (
        ("score-variants", "kmers", "contig.vcf", "--genome", "genome.fa", "--window", "4"),
        "--window must be at least 6 bases, as the model's tokens need 6: got 4",
    ),
    "short protein": (
        ("embed", "yesno", "peptide.fa", "--out", "x.npz"),
        "peptide.fa, line 1, record 'a': 5 of 5 letters are ambiguous",
    ),
    "class": (
        ("score-variants", "yesno", "contig.vcf", "--genome", "genome.fa", "--class", "x"),
        "--class must be one of no, yes: got 'x'",
    ),
    "class of none": (
        ("score-variants", "causal", "contig.vcf", "--genome", "genome.fa", "--class", "x"),
        "--class and --log-odds are for classifiers",
    ),
    "records": (("saturate", "yesno", "genome.fa"), "say with --record which to take, 'chr1'"),
    "positions": (
        ("saturate", "yesno", "genome.fa", "--record", "chr2", "--from", "9", "--to", "61"),
        "Positions must lie between 1 and 60",
    ),
    "picture": (
        ("saturate", "yesno", "short.fa", "--record", "a", "--picture", "mine.tsv"),
        "mine.tsv is there already: choose another --picture",
    ),
    "mode": (("read", "causal", "genome.fa", "--mode", "fast"), "--mode must be one of carried"),
    "classifier reads": (("read", "yesno", "genome.fa"), "yesno is a classifier"),
    "genome cut short": (("read", "causal", "cut.fa.gz", "--out", "x.tsv"), "is cut short or damaged"),
    "one class": (("train", "--data", "one.csv", "--out", "new"), "must have at least 2 classes"),
    "no labels": (
        ("train", "--data", "unlabelled.csv", "--out", "new"), "must have the columns sequence and label",
    ),
    "FASTA to train": (("train", "--data", "genome.fa", "--out", "new"), "genome.fa has no labels"),
    "table to pretrain": (
        ("pretrain", "--data", "one.csv", "--out", "new"), "a FASTA, FASTQ or GenBank file begins",
    ),
    "kind": (("pretrain", "--kind", "both", "--out", "new"), "--kind must be causal or masked"),
    "other classes": (("eval", "yesno", "--data", "one.csv"), "is not among those trained on: no, yes"),
}  # fmt: skip


@pytest.mark.parametrize(("args", "sentence"), REFUSED.values(), ids=REFUSED)
def test_mistakes_cost_a_line_and_no_file(
    here: Path, titans: Titans, args: tuple[str, ...], sentence: str
) -> None:
    write_bad_files(here)
    before = contents(here)
    assert_refused(titans("dna", *args), sentence)
    assert contents(here) == before


def test_a_library_that_is_not_there_is_named(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> None:
        raise ModuleNotFoundError("SequenceClassifier needs scikit-learn: pip install it.")

    monkeypatch.setattr("titans_domains.dna.task.load_classifier", missing)
    for command in (
        ("classify", "yesno", "genome.fa"),
        ("embed", "yesno", "genome.fa", "--out", "x"),
    ):
        assert_refused(titans("dna", *command), "SequenceClassifier needs scikit-learn")


def test_what_was_written_before_a_mistake_is_said_to_stand(
    here: Path, titans: Titans, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("titans_domains.dna.calls.MOST_ROWS", 2)
    rows = "".join(f">r{i}\n{bases(30, seed=i)}\n" for i in range(5))
    (here / "x.fa").write_text(rows + ">bad\nACGT-ACGT\n")
    done = titans("dna", "classify", "yesno", "x.fa")
    assert done.code == 2
    assert [row["name"] for row in table_of(done.out)] == ["r0", "r1", "r2", "r3"]
    assert done.err.splitlines()[-1].endswith("The 4 rows written before it stand.")
    assert "x.fa, line 11, record 'bad', position 5: '-' is no base" in done.err
    done = titans("dna", "classify", "yesno", "x.fa", "--out", "x.tsv")
    assert (done.code, done.out) == (2, "")
    assert not list(here.glob("x.tsv*"))
