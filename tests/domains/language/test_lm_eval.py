"""Runs under lm-eval: its figures are ours, in windows and in one pass, without a network."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lm_eval_files import CHOICES, TEXTS, write_tasks
from tiny_language import DOCUMENTS, tiny_model

from titans_domains.language.evaluate import bits_per_byte, costs
from titans_domains.language.generate import generate
from titans_domains.language.model import LanguageModel, token_nats
from titans_domains.language.tokenizers import BPETokenizer, ByteTokenizer, Tokenizer

pytest.importorskip("lm_eval")

from titans_domains.language import lm_eval_adapter as module
from titans_domains.language.lm_eval_adapter import TitansLM
from titans_domains.language.lm_eval_tasks import manager_of

BYTES = ByteTokenizer()
BPE = BPETokenizer.train([text.encode() for text in DOCUMENTS], 320)
TEXT = DOCUMENTS[0][:150]
WINDOW = 32


class Asked(NamedTuple):
    args: tuple[Any, ...]


def model_for(tokenizer: Tokenizer, mixer: str = "lmm") -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(tiny_model(mixer=mixer).backbone.config, tokenizer.vocab_size)
    return model.double().eval()


def asked_of(
    tokenizer: Tokenizer, mode: str = "carried", mixer: str = "lmm", window: int = WINDOW
) -> TitansLM:
    return TitansLM(model_for(tokenizer, mixer), tokenizer, mode=mode, window=window)


def cost(lm: TitansLM, text: str, mode: str = "carried") -> torch.Tensor:
    parts = costs(lm.model, lm.text_tokenizer, text.encode(), mode, window=lm.window)
    return torch.cat(list(parts))


def likelihoods(lm: TitansLM, *pairs: tuple[str, str]) -> list[tuple[float, bool]]:
    return lm.loglikelihood([Asked(pair) for pair in pairs], disable_tqdm=True)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_a_text_without_context_costs_what_evaluation_says(tokenizer: Tokenizer) -> None:
    lm = asked_of(tokenizer)
    ((nats, _),) = likelihoods(lm, ("", TEXT))
    assert nats == pytest.approx(-cost(lm, TEXT).sum().item(), abs=1e-9)
    assert likelihoods(lm, ("", ""), ("x", "")) == [(0.0, True)] * 2


@pytest.mark.parametrize("piece", [7, 1024])
@pytest.mark.parametrize("cut", [1, 40, 41, 149])
def test_a_continuation_costs_what_its_bytes_do(
    cut: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    lm = asked_of(BYTES)
    each = cost(lm, TEXT)
    # Twice the same context, whose state is kept, and another in between.
    pairs = [(TEXT[:cut], TEXT[cut:]), (TEXT[:cut], TEXT[cut : cut + 1]), ("x", "y")]
    found = likelihoods(lm, *pairs, pairs[0])
    assert found[0][0] == pytest.approx(-each[cut:].sum().item(), abs=1e-9)
    assert found[1][0] == pytest.approx(-each[cut].item(), abs=1e-9)
    assert found[2][0] == pytest.approx(-cost(lm, "xy")[1].item(), abs=1e-9)
    assert found[3] == pytest.approx(found[0], abs=1e-12)


def test_a_token_of_both_is_the_continuation_s() -> None:
    lm = asked_of(BPE)
    whole = lm.tok_encode("The memory reads")
    assert len(whole) < 10
    for cut in range(len("The memory reads") + 1):
        context, text = "The memory reads"[:cut], "The memory reads"[cut:]
        before, after = lm._encode_pair(context, text)
        assert before + after == [BPE.end, *whole]
        sides = BPE.decode(before[1:]).decode(), BPE.decode(after).decode()
        assert context.startswith(sides[0])
        assert sides[1].endswith(text)
        # No more than the one token at the cut has changed sides.
        assert len(context) - len(sides[0]) < len(BPE.decode(after[:1])) or not after
    ((nats, _),) = likelihoods(lm, ("The memo", "ry reads"))
    each = cost(lm, "The memory reads")
    count = len(lm._encode_pair("The memo", "ry reads")[1])
    assert nats == pytest.approx(-each[-count:].sum().item(), abs=1e-9)


def test_blanks_stay_on_their_side_where_tokens_let_them() -> None:
    before, after = asked_of(BYTES)._encode_pair("a ", "b")
    assert (before, after) == ([256, 97, 32], [98])


@torch.no_grad()
@pytest.mark.parametrize("mixer", ["lmm", "attention"])
def test_a_window_sees_no_more_than_its_tokens(mixer: str) -> None:
    lm = asked_of(BYTES, "window", mixer)
    ids = torch.tensor([[256, *TEXT.encode()]])
    for cut, end in ((100, 103), (2, 9), (10, 42)):
        first = max(0, end - WINDOW)
        logits, _ = lm.model(ids[:, first:end])
        nats = token_nats(logits, ids[:, first + 1 : end + 1])[0, cut - end :].sum().item()
        ((found, _),) = likelihoods(lm, (TEXT[:cut], TEXT[cut:end]))
        assert found == pytest.approx(-nats, abs=1e-9)
    with pytest.raises(ValueError, match="33 tokens does not fit into a window of 32"):
        likelihoods(lm, ("a", "b" * 33))


def test_greedy_means_that_each_token_is_the_likeliest() -> None:
    lm = asked_of(BYTES)
    made = b"".join(generate(lm.model, BYTES, b"The ", max_tokens=5, temperature=0))
    text = made.decode()
    other = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert [greedy for _, greedy in likelihoods(lm, ("The ", text), ("The ", other))] == [
        True,
        False,
    ]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_a_document_in_one_pass_costs_what_evaluation_says(tokenizer: Tokenizer) -> None:
    lm = asked_of(tokenizer)
    found = lm.loglikelihood_rolling([Asked((TEXT,)), Asked(("",))], disable_tqdm=True)
    assert found == [pytest.approx(-cost(lm, TEXT).sum().item(), abs=1e-9), 0.0]


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 80, 150])
def test_a_document_in_windows_is_cut_as_the_harness_does(length: int) -> None:
    lm = asked_of(BYTES, "window")
    ids = torch.tensor([[256, *TEXT[:length].encode()]])
    total = 0.0
    for begin in range(0, length, WINDOW):
        end = min(begin + WINDOW, length)
        # The last window is filled up in front.
        first = max(0, end - WINDOW)
        logits, _ = lm.model(ids[:, first:end])
        total += token_nats(logits, ids[:, first + 1 : end + 1])[0, begin - end :].sum().item()
    (found,) = lm.loglikelihood_rolling([Asked((TEXT[:length],))], disable_tqdm=True)
    assert found == pytest.approx(-total, abs=1e-9)


def made_by(lm: TitansLM, context: str, **settings: Any) -> str:
    (text,) = lm.generate_until([Asked((context, settings))], disable_tqdm=True)
    return text


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_p": 0.9}])
def test_text_is_made_as_elsewhere_up_to_a_stop_string(settings: dict[str, float]) -> None:
    lm = asked_of(BYTES)
    how = {"temperature": 0.0, "top_p": 1.0} | settings
    made = b"".join(generate(lm.model, BYTES, b"The ", max_tokens=30, seed=0, **how))  # type: ignore[arg-type]
    whole = made.decode(errors="replace")
    assert made_by(lm, "The ", max_gen_toks=30, **settings) == whole
    assert made_by(lm, "The ", max_gen_toks=0, **settings) == ""
    assert made_by(lm, "", max_gen_toks=4) != made_by(lm, "The ", max_gen_toks=4)


class Spelling(torch.nn.Module):
    """Goes on with a fixed text, then with the end of the document."""

    def __init__(self, text: bytes) -> None:
        super().__init__()
        self.ids = [*text, 256]

    def forward(self, tokens: torch.Tensor, state: int | None = None) -> tuple[torch.Tensor, int]:
        logits = torch.zeros(*tokens.shape, 257)
        position = (state or 0) + tokens.shape[1]
        logits[0, -1, self.ids[position - 1]] = 1
        return logits, position


@pytest.mark.parametrize(
    ("until", "limit", "made"),
    [
        ([], 99, "one, two: öne."),
        ([","], 99, "one"),
        ([":", ", t"], 99, "one"),
        (["wo", "xyz"], 99, "one, t"),
        (["ne", "one"], 99, ""),
        (["ö"], 99, "one, two: "),
        (["o"], 99, ""),
        ([], 5, "one, "),
    ],
)
def test_stop_strings_end_a_text_and_are_not_of_it(until: list[str], limit: int, made: str) -> None:
    lm = asked_of(BYTES)
    spelling: Any = Spelling("one, two: öne.".encode())
    spelling.backbone = lm.model.backbone
    spelling.backbone.fresh_state = lambda batch: None
    lm.model = spelling
    assert made_by(lm, "", until=until, max_gen_toks=limit) == made


def test_several_requests_are_sampled_apart() -> None:
    lm = asked_of(BYTES)
    asked = [Asked(("The ", {"do_sample": True, "max_gen_toks": 12}))] * 2
    first, second = lm.generate_until(asked, disable_tqdm=True)
    assert first != second
    assert lm.generate_until(asked, disable_tqdm=True) == [first, second]


def test_a_window_leaves_room_for_what_is_made() -> None:
    lm = asked_of(BYTES, "window")
    short = made_by(lm, TEXT[100:120], max_gen_toks=12)
    assert made_by(lm, TEXT[:120], max_gen_toks=12) == short
    # The start of the document is one of the 20 tokens there is room for.
    assert made_by(lm, TEXT[101:120], max_gen_toks=12) != ""
    with pytest.raises(
        ValueError, match="max_gen_toks must be below the window of 32 tokens: got 32"
    ):
        made_by(lm, "a", max_gen_toks=32)


def test_modes_that_a_model_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="mode must be one of window for this run: got 'carried'"):
        asked_of(BYTES, "carried", "attention")
    with pytest.raises(
        ValueError, match="mode must be one of carried, window for this run: got 'x'"
    ):
        asked_of(BYTES, "x")
    with pytest.raises(ValueError, match="window must be at least 1 token: got 0"):
        asked_of(BYTES, window=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def evaluated(lm: TitansLM, folder: Path, tasks: Sequence[str]) -> dict[str, Any]:
    from lm_eval import simple_evaluate

    found = simple_evaluate(
        model=lm, tasks=list(tasks), task_manager=manager_of([*tasks], folder), log_samples=False
    )
    return dict(found["results"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("mode", ["carried", "window"])
def test_chances_of_one_in_257_are_just_over_8_bits(folder: Path, mode: str) -> None:
    lm = asked_of(BYTES, mode)
    torch.nn.init.zeros_(lm.model.embedding.weight)
    bits = evaluated(lm, folder, ["pages"])["pages"]["bits_per_byte,none"]
    # Of 256 bytes and the end of a document, which none of these bytes is.
    assert bits == pytest.approx(math.log2(257), abs=1e-9)
    assert f"{bits:.3f}" == "8.006"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_tasks_of_a_folder_give_our_own_figures(folder: Path) -> None:
    lm = asked_of(BYTES)
    results = evaluated(lm, folder, ["pages", "choose", "write"])
    texts = [row["text"].encode() for row in TEXTS]
    bits = bits_per_byte(lm.model, BYTES, texts, "carried", window=WINDOW)
    assert results["pages"]["bits_per_byte,none"] == pytest.approx(bits, abs=1e-9)
    right = 0
    for row in CHOICES:
        options: Any = row["choices"]
        nats = [
            found for found, _ in likelihoods(lm, *((str(row["question"]), x) for x in options))
        ]
        right += nats.index(max(nats)) == row["answer"]
    assert results["choose"]["acc,none"] == right / 2
    assert results["write"]["exact_match,none"] == 0


def test_lm_eval_makes_one_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.api.registry import get_model

    assert get_model("titans") is TitansLM
    assert get_model("dummy") is not TitansLM
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(TitansLM, "from_run", lambda **settings: calls.append(settings))
    TitansLM.create_from_arg_string("run=runs/a,window=9", {"batch_size": 4, "device": "cpu"})
    TitansLM.create_from_arg_obj({"run": "b", "mode": "window", "device": "cuda"}, {"device": None})
    assert calls == [
        {"run": "runs/a", "window": 9, "device": "cpu"},
        {"run": "b", "mode": "window", "device": "cuda"},
    ]


def test_an_unknown_task_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from titans_domains.language import lm_eval_tasks

    asked: list[bool] = []

    class Manager:
        def __init__(self, include_path: str | None, include_defaults: bool) -> None:
            asked.append(include_defaults)
            self.all_tasks = ["pages", "piqa"] if include_defaults else ["pages"]

    monkeypatch.setattr(lm_eval_tasks, "TaskManager", Manager)
    manager_of(["pages"], folder)
    manager_of(["pages", "piqa"], folder)
    manager_of(["pages"], None)
    assert asked == [False, False, True, True]
    with pytest.raises(ValueError, match="lm-eval has no task 'pique': give names"):
        manager_of(["pages", "pique"], folder)
