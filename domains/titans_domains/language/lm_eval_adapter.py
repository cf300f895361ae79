"""Runs as models of lm-evaluation-harness, under the name `titans`.

lm-eval knows the models of its own tree only. `titans language lm-eval` makes this one known and calls
it, and so does its own command line by way of this module:

    python -m titans_domains.language.lm_eval_adapter --model titans \\
        --model_args run=runs/tiny,mode=carried --tasks wikitext
"""

from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.models  # noqa: F401  lm-eval looks for its own models only while it knows of none
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)
from tqdm import tqdm

from titans_domains.language.evaluate import PIECE, costs, modes_of
from titans_domains.language.generate import pick
from titans_domains.language.lm_eval_sampling import Sampling, sampling_of
from titans_domains.language.model import LanguageModel, token_nats
from titans_domains.language.task import load_run
from titans_domains.language.tokenizers import Tokenizer
from titans_domains.runs import choose_device

MODES = ("carried", "window")

Request = tuple[tuple[str, str], list[int], list[int]]


def modes_for(model: LanguageModel) -> tuple[str, ...]:
    """The modes in which a model can be asked, its own way of reading first."""
    return MODES if "carried" in modes_of(model) else ("window",)


@register_model("titans")
class TitansLM(TemplateLM):
    """A language model, asked one text after the other; every text begins a document.

    carried: all of a text is read in one pass, and the memory learns from it. window: as the harness
    asks models with a longest context, `window` tokens.
    """

    def __init__(
        self, model: LanguageModel, tokenizer: Tokenizer, *, mode: str, window: int
    ) -> None:
        super().__init__()
        if mode not in (modes := modes_for(model)):
            raise ValueError(f"mode must be one of {', '.join(modes)} for this run: got {mode!r}.")
        if window < 1:
            raise ValueError(f"window must be at least 1 token: got {window}.")
        self.model, self.text_tokenizer = model.eval(), tokenizer
        self.mode, self.window = mode, window
        self._device = model.embedding.weight.device
        # Tokens of the last context, and the state after all but the last of them.
        self.read: tuple[list[int], Any] | None = None

    @classmethod
    def from_run(
        cls, run: str, mode: str | None = None, window: int | None = None, device: str = "auto"
    ) -> "TitansLM":
        """Of a run's folder; the window is by default as long as the sequences it was trained on."""
        model, tokenizer, config = load_run(Path(run), choose_device(device))
        mode = modes_for(model)[0] if mode is None else mode
        return cls(
            model, tokenizer, mode=mode, window=config.data.seq_len if window is None else window
        )

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "TitansLM":
        """What lm-eval calls with its `--model_args`; of its other options only the device counts."""
        device = (additional_config or {}).get("device")
        return cls.from_run(**({} if device is None else {"device": device}) | arg_dict)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "TitansLM":
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        return self.text_tokenizer.end

    @property
    def tokenizer_name(self) -> str:
        return f"titans-{self.text_tokenizer.vocab_size}"

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        return self.text_tokenizer.encode(string.encode()).tolist()

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Both as one text, the document's start in front.

        A token that holds bytes of both is one of the continuation; no other byte changes sides.
        """
        ids = self.tok_encode(context + continuation)
        left, count = len(context.encode()), 0
        for token in ids:
            left -= len(self.text_tokenizer.decode([token]))
            if left < 0:
                break
            count += 1
        return [self.eot_token_id, *ids[:count]], ids[count:]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = [request.args for request in requests]
        return self._loglikelihood_tokens(
            [((context, text), *self._encode_pair(context, text)) for context, text in pairs],
            disable_tqdm=disable_tqdm,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        found = []
        for pair, context, continuation in tqdm(requests, disable=disable_tqdm):
            found.append(self._score(context, continuation))
            self.cache_hook.add_partial("loglikelihood", pair, found[-1])
        return found

    def _score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Log-likelihood in nats, and whether each token is the likeliest."""
        if not continuation:
            return 0.0, True
        count, state = len(continuation), None
        if self.mode == "carried":
            state = self._state_before_last(context)
            tokens = [context[-1], *continuation]
        elif count <= self.window:
            tokens = (context + continuation)[-self.window - 1 :]
        else:
            raise ValueError(
                f"A continuation of {count} tokens does not fit into a window of {self.window}: give a "
                "larger window, or mode=carried."
            )
        targets = self._tensor(tokens[1:])
        logits = torch.cat([part for part, _ in self._pieces(tokens[:-1], state)], 1)
        logits, targets = logits[:, -count:], targets[:, -count:]
        nats = token_nats(logits, targets).sum().item()
        return -nats, bool((logits.argmax(-1) == targets).all())

    def _state_before_last(self, context: list[int]) -> Any:
        """The state after a context but its last token; the answers to one question share it."""
        if self.read is None or self.read[0] != context:
            state = self.model.backbone.fresh_state(1)
            for _, after in self._pieces(context[:-1], state):
                state = after
            self.read = (context, state)
        return self.read[1]

    @torch.no_grad()
    def _pieces(self, tokens: list[int], state: Any) -> Iterator[tuple[torch.Tensor, Any]]:
        """Logits of the tokens and the state behind them, piece by piece."""
        for at in range(0, len(tokens), PIECE):
            logits, state = self.model(self._tensor(tokens[at : at + PIECE]), state)
            yield logits, state

    def _tensor(self, tokens: list[int]) -> torch.Tensor:
        return torch.tensor([tokens], device=self._device)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in tqdm(requests, disable=disable_tqdm):
            (text,) = request.args
            found.append(self._score_all(text))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def _score_all(self, text: str) -> float:
        """Log-likelihood of a whole document: in one pass, or in the harness's windows.

        Those follow each other without overlap, but that the last one is filled up with what is before it.
        """
        if not text:
            return 0.0
        if self.mode == "carried":
            parts = costs(
                self.model, self.text_tokenizer, text.encode(), "carried", window=self.window
            )
            return -sum(part.sum().item() for part in parts)
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text), prefix_token=self.eot_token_id,
            max_seq_len=self.window, context_len=1,
        )  # fmt: skip
        return sum(self._score(*make_disjoint_window(pair))[0] for pair in windows)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        found = []
        for number, request in enumerate(tqdm(requests, disable=disable_tqdm)):
            context, settings = request.args
            found.append(self._generate(context, sampling_of(settings), seed=number))
            self.cache_hook.add_partial("generate_until", request.args, found[-1])
        return found

    def _generate(self, context: str, how: Sampling, seed: int) -> str:
        """What follows the context, up to the first of the stop strings."""
        tokens = [self.eot_token_id, *self.tok_encode(context)]
        if self.mode == "window":
            if how.limit >= self.window:
                raise ValueError(
                    f"max_gen_toks must be below the window of {self.window} tokens: got {how.limit}. "
                    "Give a larger window, or mode=carried."
                )
            tokens = tokens[how.limit - self.window :]
        made = b""
        for piece in self._tokens_after(tokens, how, seed):
            made += piece
            ends = [at for stop in how.until if (at := made.find(stop)) >= 0]
            if ends:
                made = made[: min(ends)]
                break
        return made.decode(errors="replace")

    def _tokens_after(self, tokens: list[int], how: Sampling, seed: int) -> Iterator[bytes]:
        random = torch.Generator(self._device).manual_seed(seed)
        state = self.model.backbone.fresh_state(1)
        for _ in range(how.limit):
            ((logits, state),) = deque(self._pieces(tokens, state), maxlen=1)
            token = pick(logits[:, -1].float(), how.temperature, how.top_p, random)
            tokens = [int(token.item())]
            if tokens[0] == self.eot_token_id:
                return
            yield self.text_tokenizer.decode(tokens)


def main() -> None:
    """lm-eval's own command line, which knows of runs by now."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
