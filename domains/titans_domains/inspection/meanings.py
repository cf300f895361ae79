"""What the figures of reports are, in the words that stand below them."""

from collections.abc import Mapping

from titans_domains.page import Html, tag

ALONG = {
    "surprise": (
        "norm of the gradient of the memory's loss at this token, taken at the memory at "
        "the start of the token's chunk; before it is clamped."
    ),
    "write": (
        "step size times the clamped surprise: the norm of what the token adds to the "
        "running surprise."
    ),
    "before": (
        "surprise of the memory as training left it, at the same key and value: how much "
        "the token would surprise had nothing been written."
    ),
    "step_size": "how much of the gradient is taken (theta).",
    "momentum": "the share of past surprise that is carried on (eta).",
    "forget": "the share of the memory that is erased (alpha).",
    "bits": (
        "what the model itself paid to predict the token: another thing than the memory's surprise."
    ),
}
"""Of surprise along a file, by measure."""

MATRICES = {
    "norm": (
        "Frobenius norm of the matrix that is read, M. M_-1 is what training has left, "
        "and what forgetting goes back to by default."
    ),
    "effective rank": (
        "exp of the entropy of the singular values divided by their sum (Roy and "
        "Vetterli, 2007): between 1 and the shorter side. A matrix of random numbers is "
        "near the shorter side, so the one of what was learned says more than that of M."
    ),
    "learned": (
        "norm of M less the memory before its first token (M_-1, and what persistent "
        "tokens write); relative: divided by the norm of that start."
    ),
    "running surprise": "norm of S, from which the next token's write goes on.",
}
"""Of each matrix of a memory."""

RECALL = {
    "recall": (
        "cosine of f(M; key) with the value that was to be stored there, a mean over "
        "watched tokens: the first and the last, and some at equal distances between "
        "them. Keys and values are those of the moment of writing."
    ),
    "before reading": (
        "the same of the memory before its first token. What is above it was learned from"
        " what was read."
    ),
    "others' values": (
        "cosine of the answer with the values of the other tokens: high where all values "
        "of a head are alike, and then a high recall says little."
    ),
    "found": (
        "share of the other tokens whose value is less like the answer than the right "
        "one; 50 % by chance. Equal values count half."
    ),
    "squared error": (
        "|f(M; key) - value|^2 / |value|^2, which is what the memory is trained to lower,"
        " 1 for an answer of zeros; before: of the memory before its first token."
    ),
    "half-life": (
        "age at which recall by age has lost half of what the 8 newest tokens have above the "
        "mean before reading. Ages are binned by powers of two, so it is coarse. Where "
        "keys come again, as letters do, recall of an old one is that of its repetitions:"
        " compare it with another memory's (titans inspect compare)."
    ),
    "by the gates": (
        "age at which the product of 1 - forget over all later tokens has fallen to half, "
        "with forgetting per channel the mean of the channels' products. Later writes to "
        "the same weights can lose a key sooner, and momentum goes on writing it."
    ),
}
"""Of what stored keys return."""

COMPARED = {
    "change": (
        "norm of B - A, divided by the larger of what A and B have learned (memory less "
        "its start): 0 for the same memory, about 1.4 for two that learned as much of "
        "unrelated things, 2 for opposite ones. The table is sorted by it."
    ),
    "of A's weights": (
        "norm of B - A divided by that of A. Most of A is what training has left, so this"
        " is small even where all that was read differs."
    ),
    "cosine of these": "between what A and what B have learned, all entries as one vector.",
    "effective rank": (
        "of B - A: exp of the entropy of the singular values divided by their sum (Roy "
        "and Vetterli, 2007)."
    ),
    "shared directions": (
        "mean cosine of the principal angles between the four leading input directions of"
        " what each has learned; by chance: the root mean square for random directions."
    ),
    "recall": (
        "cosine of f(M; key) with the value that the file wrote there; before reading: of"
        " the memory before its first token; found: share of the file's other values that"
        " are less like the answer, 50 % by chance."
    ),
    "A with B": "cosine of the two answers to the same key.",
}
"""Of two memories."""


def glossary(meanings: Mapping[str, str]) -> Html:
    parts = [(tag("dt", name), tag("dd", text)) for name, text in meanings.items()]
    return tag("dl", *(part for pair in parts for part in pair))
