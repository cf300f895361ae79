"""The bodies of requests: what may stand in them, and what is wrong with one in a sentence."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from titans_domains.serving.errors import ServiceError

SESSION = r"^[A-Za-z0-9][A-Za-z0-9._:@-]*$"
SessionName = Annotated[str, Field(min_length=1, max_length=128, pattern=SESSION)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]


WORDS = {
    "session": "1 to 128 letters, digits or . _ : @ -, of which the first is a letter or a digit",
    "stop": "a string of 1 to 256 letters, or a list of at most 4 such strings",
}
WORDS["id"] = WORDS["session"]


class Body(BaseModel):
    """A JSON object without any other key; numbers are numbers, and no text that looks like one."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Body):
    include_usage: bool | None = None


class CompletionBody(Body):
    """OpenAI's, with `session`; what this service does not do may only be given as its default."""

    prompt: str
    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = 1.0
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    session: SessionName | None = None
    user: str | None = None
    echo: Any = False
    n: Any = 1
    best_of: Any = 1
    logprobs: Any = None
    logit_bias: Any = None
    suffix: Any = None
    presence_penalty: Any = 0
    frequency_penalty: Any = 0

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def check_supported(self) -> None:
        """ServiceError for what OpenAI's API has and this service has not."""
        for name in UNSUPPORTED:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value is not None and value != default and value != {}:
                raise ServiceError(
                    400, f"{name} is not supported: leave it away, or give {default!r}.",
                    code="unsupported", param=name,
                )  # fmt: skip


UNSUPPORTED = (
    "echo", "n", "best_of", "logprobs", "logit_bias", "suffix", "presence_penalty",
    "frequency_penalty",
)  # fmt: skip


class SessionBody(Body):
    id: SessionName | None = None


class ForecastBody(Body):
    """Rows of a table, long (item_id, timestamp, target, covariates) or wide (a stamp, then series).

    `freq`, such as h or 15min, is by default that of the stamps, and the model's where they show none.
    """

    rows: Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str | None = None
    freq: Annotated[str, Field(min_length=1, max_length=32)] | None = None
    quantiles: Annotated[list[Finite], Field(min_length=1, max_length=99)] = [0.1, 0.5, 0.9]


class ClassifyBody(Body):
    sequences: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]
    model: str | None = None


def sentence_of(errors: Sequence[Any]) -> ServiceError:
    """The first thing that is wrong with a body, as pydantic has found it."""
    error = errors[0]
    # Of a union, such as that of `stop`, the places name the types that were tried.
    path = [
        str(part) for part in error["loc"] if part not in ("body", "query") and "[" not in str(part)
    ]
    path = path[:1] if path[:1] == ["stop"] else path
    where = _name(".".join(path))
    if error["type"] == "string_unicode" and not path:
        return ServiceError(
            400, "A name in the body is half a letter: leave it away.", code="invalid_value"
        )
    if error["type"] == "json_invalid":
        return ServiceError(400, "The body is no JSON: send a JSON object.", code="invalid_json")
    if not path:
        return ServiceError(
            400, "The body must be a JSON object, sent with Content-Type: application/json.",
            code="invalid_body",
        )  # fmt: skip
    if error["type"] == "extra_forbidden":
        message = f"{where} is not known: leave it away."
    elif error["type"] == "missing":
        message = f"{where} is missing: give it."
    elif path[-1] in WORDS:
        message = f"{where} must be {WORDS[path[-1]]}: got {_shown(error.get('input'))}."
    else:
        words = error["msg"].replace("Input should", "must").replace("should", "must")
        message = f"{where} {words[0].lower()}{words[1:]}: got {_shown(error.get('input'))}."
    return ServiceError(400, message, param=where, code="invalid_value")


def _name(where: str) -> str:
    """Where something stands, which a client may have made up, of any length."""
    return where if where.isprintable() and len(where) <= 60 else _shown(where)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
