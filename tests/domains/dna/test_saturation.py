"""Every base is replaced by each other once, and the picture shows what that changed."""

import io
from pathlib import Path

import numpy as np
import pytest
from dna_files import packed
from dna_models import ByPosition

from titans_domains.dna.saturation import cells_of, draw_saturation, pick_record, saturate
from titans_domains.dna.scoring import class_scorer

SCORER = class_scorer(ByPosition(), None)
VALUE = {"A": 1, "C": 2, "G": 3, "T": 4, "N": 0}


def test_each_replacement_has_its_own_score() -> None:
    sequence = "GATNC"
    told: list[int] = []
    found = saturate(SCORER, sequence, batch=4, progress=told.append)
    assert found.reference == pytest.approx(0.31402)
    rows = list(cells_of(found, "r", "p_yes"))
    assert len(rows) == sum(told) == 3 * 4 + 4
    assert rows[0].keys() == {"name", "position", "ref", "alt", "p_yes", "diff"}
    for row in rows:
        at = row["position"] - 1
        assert row["ref"] == sequence[at] != row["alt"]
        change = (VALUE[row["alt"]] - VALUE[row["ref"]]) / 10 ** (at + 1)
        assert row["diff"] == pytest.approx(change)
        assert row["p_yes"] == pytest.approx(0.31402 + change)
    assert len({(row["position"], row["alt"]) for row in rows}) == 16
    own = [found.differences["ACGT".index(b), i] for i, b in enumerate(sequence) if b != "N"]
    assert own == [0, 0, 0, 0]


def test_a_part_is_replaced_in_its_surroundings() -> None:
    whole = saturate(SCORER, "GATTAC")
    part = saturate(SCORER, "GATTAC", first=2, last=4)
    np.testing.assert_allclose(part.scores, whole.scores[:, 2:4])
    assert [row["position"] for row in cells_of(part, "r", "x")] == [3, 3, 3, 4, 4, 4]


@pytest.mark.parametrize(("first", "last"), [(6, 7), (3, 3), (0, 7), (-1, 2)])
def test_positions_outside_the_sequence_are_refused(first: int, last: int) -> None:
    with pytest.raises(ValueError, match="Positions must lie between 1 and 6"):
        saturate(SCORER, "GATTAC", first=first, last=last)


def test_the_picture_is_a_png() -> None:
    for sequence in ("GATNC", "A"):
        file = io.BytesIO()
        draw_saturation(saturate(SCORER, sequence), "a $name", "change", file)
        assert file.getvalue().startswith(b"\x89PNG")


def test_a_record_is_picked_by_name_or_is_the_only_one(tmp_path: Path) -> None:
    path = packed(tmp_path / "x.fa", ">a b\nACR\n>c\nGG\n", "plain")
    assert pick_record(path, "a") == ("a", "ACN", 1)
    assert pick_record(path, "c") == ("c", "GG", 0)
    with pytest.raises(ValueError, match="several records: say with --record which to take, 'a'"):
        pick_record(path, None)
    with pytest.raises(ValueError, match="has no record 'b'"):
        pick_record(path, "b")
    assert pick_record(packed(tmp_path / "y.fa", ">c\ngu\n", "plain"), None) == ("c", "GT", 0)
