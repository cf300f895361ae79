"""Markov models of bases against counts by hand, and the model that copies."""

import numpy as np
import pytest

from titans_domains.dna.markov import UNKNOWN, Markov, contexts, copy_bits, other_strand


def coded(text: str) -> np.ndarray:
    return np.array(["ACGTN".index(c) for c in text], np.uint8)


def random_codes(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, count).astype(np.uint8)


def test_a_context_is_the_bases_before() -> None:
    # In base 4 the last base before is the last digit.
    assert contexts(coded("ACGTNAC"), 2).tolist() == [-1, -1, 1, 6, 11, -1, -1]
    assert contexts(coded("ACG"), 0).tolist() == [0, 0, 0]


def test_the_other_strand_is_the_reverse_complement() -> None:
    assert other_strand(coded("AACGTN")).tolist() == coded("NACGTT").tolist()


def test_chances_are_counts_of_both_strands_over_those_of_shorter_contexts() -> None:
    text, prior = "AACGNTTACG", 3.0
    strands = [text, text[::-1].translate(str.maketrans("ACGT", "TGCA"))]

    def chance(base: str, context: str) -> float:
        shorter = chance(base, context[1:]) if context else 0.25
        joined = [
            s[i : i + len(context) + 1] for s in strands for i in range(len(s) - len(context))
        ]
        seen = [j for j in joined if j[:-1] == context and "N" not in j]
        hits = sum(j[-1] == base for j in seen)
        return (hits + prior * shorter) / (len(seen) + prior)

    model = Markov([coded(text)], 2, prior)
    bits = model.bits(coded("ACGTTNAC"))
    contexts_of = ["", "A", "AC", "CG", "GT", None, "", "A"]
    wanted = [
        np.nan if c is None else -np.log2(chance(b, c))
        for b, c in zip("ACGTTNAC", contexts_of, strict=True)
    ]
    assert np.allclose(bits, wanted, equal_nan=True)


def test_chances_sum_to_one_and_a_known_order_is_found() -> None:
    # Each base but for a tenth of noise is the base two before it plus one.
    random = np.random.default_rng(0)
    codes = random_codes(20_000)
    for t in range(2, len(codes)):
        if random.random() < 0.9:
            codes[t] = (codes[t - 2] + 1) % 4
    model = Markov([codes[:15_000]], 3)
    assert all(np.allclose(table.sum(1), 1) for table in model.chances)
    low, right = (Markov([codes[:15_000]], k).bits(codes)[15_000:].mean() for k in (1, 2))
    assert low > 1.9
    # The other strand, which is counted too, follows another rule.
    assert right < 1.6


def test_a_copy_is_cheap_on_either_strand_and_a_first_reading_is_not() -> None:
    first = random_codes(1500)
    copy, turned = first[300:900].copy(), other_strand(first[300:900])
    for part in (copy, turned):
        part[::60] = (part[::60] + 1) % 4
    between = random_codes(400, seed=1)
    codes = np.concatenate([first, copy, between, turned])
    base = np.full(len(codes), 2.0)
    bits = copy_bits(codes, base)
    assert bits[:1500].mean() == pytest.approx(2.0, abs=0.02)
    assert bits[1500:2100].mean() < 0.6
    assert bits[2100:2500].mean() == pytest.approx(2.0, abs=0.1)
    assert bits[2500:].mean() < 0.6
    # It codes: no chance is more than one, and the four chances of a base are one together.
    assert bits.min() > 0
    same = codes.copy()
    total = np.zeros(4)
    for base_code in range(4):
        same[1700] = base_code
        total[base_code] = 2 ** -copy_bits(same[:1701], base[:1701])[-1]
    assert total.sum() == pytest.approx(1.0)


def test_an_unknown_base_ends_a_copy() -> None:
    first = random_codes(200)
    copy = first.copy()
    copy[100] = UNKNOWN
    bits = copy_bits(np.concatenate([first, copy]), np.where(np.arange(400) == 300, np.nan, 2.0))
    assert np.isnan(bits[300])
    assert bits[230:300].mean() < 0.6
    assert np.isfinite(np.delete(bits, 300)).all()
