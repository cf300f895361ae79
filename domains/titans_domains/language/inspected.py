"""A language model that is inspected while it reads a text."""

import codecs
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from titans_domains.inspection.subject import Kind, Passage
from titans_domains.language.evaluate import PIECE
from titans_domains.language.model import LanguageModel, token_nats
from titans_domains.language.reading import read_text, stream_of
from titans_domains.language.tokenizers import Tokenizer


class TextSubject:
    """Follows `titans_domains.inspection.Subject`; a file is one document."""

    kind: Kind = "text"
    readings: tuple[str, ...] = ("",)
    mirrored: tuple[int, ...] = ()
    notes = ("The text is read as one document, from a fresh memory, which is carried to its end.",)

    def __init__(self, model: LanguageModel, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer, self.backbone = model, tokenizer, model.backbone

    def total(self, path: Path) -> int:
        return len(stream_of(self.tokenizer, read_text(path)))

    def passages(self, path: Path, record: str | None = None) -> Iterator[Passage]:
        if record is not None:
            raise ValueError(f"{path} is one document: leave --record away.")
        text = read_text(path)
        tokens = stream_of(self.tokenizer, text).to(self.model.embedding.weight.device)
        letters = Letters(self.tokenizer)
        state = self.backbone.fresh_state(1)
        expected: torch.Tensor | None = None
        for first in range(0, len(tokens), PIECE):
            piece = tokens[first : first + PIECE]
            with torch.no_grad():
                logits, state = self.model(piece[None], state)
            skip = int(first == 0)
            # What stands before the first token is the start alone, from which it is predicted too.
            before = (
                logits[:, :-1] if expected is None else torch.cat([expected, logits[:, :-1]], 1)
            )
            expected = logits[:, -1:]
            yield Passage(
                labels=letters.of(piece[skip:].tolist()),
                begins=path.name if not first else None,
                skip=skip,
                bits=token_nats(before, piece[None, skip:])[0].cpu().numpy() / math.log(2),
                done=first + len(piece),
            )


class Letters:
    """The text of tokens one by one; letters of several tokens stand at the last of these."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def of(self, ids: list[int]) -> list[str]:
        return [self.decoder.decode(self.tokenizer.decode([token])) for token in ids]
