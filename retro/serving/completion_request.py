"""The body of POST /v1/completions: OpenAI's fields, ours, and one clear message for what is wrong with them."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from retro.config.generation import LARGEST_SEED
from retro.serving.errors import ApiError, invalid

MAX_STOPS, MAX_STOP_CHARACTERS, MAX_LOGPROBS = 4, 256, 5
MAX_RELATION_CHARACTERS = 256
#: Below, logits divided by it leave the range of floats; 0 itself means greedy.
SMALLEST_TEMPERATURE = 0.001
_SHOWN = 60

Prompt = str | tuple[int, ...]

_PROMPT_FORMS = "a string, a list of strings, a list of token ids, or a list of lists of token ids"
_PROMPT_SCHEMA = {
    "description": f"What to continue: {_PROMPT_FORMS}. Token ids are taken as they are.",
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {
            "type": "array",
            "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
            "minItems": 1,
        },
    ],
}


def _one_or_each(item: dict[str, Any], description: str) -> dict[str, Any]:
    """Schema of a value for all prompts, or of a list with one for each prompt."""
    each = {"type": "array", "items": {"anyOf": [item, {"type": "null"}]}, "minItems": 1}
    return {"description": description, "anyOf": [item, each, {"type": "null"}]}


def _wrong(message: str) -> PydanticCustomError:
    # Braces in a template are fields of the context.
    return PydanticCustomError("value", "{text}", {"text": message})


def _token_ids(value: list[Any]) -> tuple[int, ...] | None:
    """The ids, or None if the list is none of ids; bools are not numbers here."""
    return tuple(value) if value and all(type(item) is int and item >= 0 for item in value) else None


def _prompts(value: Any) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        ids = _token_ids(value)
        if ids is not None:
            return (ids,)
        rows = [_token_ids(item) if isinstance(item, list) else None for item in value]
        if None not in rows:
            return tuple(row for row in rows if row is not None)
    raise _wrong(f"expected {_PROMPT_FORMS}, not empty and ids 0 or more, found {_show(value)}")


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value if isinstance(value, list) else None
    if value is None:
        return ()
    if stops is None or not all(isinstance(item, str) for item in stops) or len(stops) > MAX_STOPS:
        raise _wrong(f"expected a string or a list of up to {MAX_STOPS} strings, found {_show(value)}")
    for item in stops:
        if not 1 <= len(item) <= MAX_STOP_CHARACTERS:
            raise _wrong(f"expected strings of 1 to {MAX_STOP_CHARACTERS} characters, found one of {len(item)}")
    return tuple(stops)


def _relations(value: Any) -> str | tuple[str | None, ...] | None:
    found = tuple(value) if isinstance(value, list) else value
    for item in found if isinstance(found, tuple) else (found,):
        if not isinstance(item, str | None) or len(item or "") > MAX_RELATION_CHARACTERS:
            raise _wrong(
                f"expected a string of up to {MAX_RELATION_CHARACTERS} characters, or a list of them, one per prompt, "
                f"found {_show(item)}"
            )
    return found  # type: ignore[no-any-return]


def _popularities(value: Any) -> float | tuple[float | None, ...] | None:
    found = tuple(value) if isinstance(value, list) else value
    for item in found if isinstance(found, tuple) else (found,):
        number = isinstance(item, int | float) and not isinstance(item, bool) and 0 <= item < math.inf
        if item is not None and not number:
            raise _wrong(
                f"expected monthly page views, 0 or more, or a list of them, one per prompt, found {_show(item)}"
            )
    return found  # type: ignore[no-any-return]


def _temperature(value: float) -> float:
    if 0 < value < SMALLEST_TEMPERATURE:
        raise _wrong(f"expected 0 (greedy) or at least {SMALLEST_TEMPERATURE:g}, found {value:g}")
    return value


def _not_offered(neutral: Any, instead: str) -> BeforeValidator:
    """A field of OpenAI's that this server does not have: its neutral value is taken, any other refused by name."""

    def check(value: Any) -> None:
        if value is not None and (isinstance(value, bool) or value != neutral):
            raise _wrong(f"is not supported by this server, found {_show(value)}; {instead}")

    return BeforeValidator(check)


def _show(value: Any) -> str:
    # repr() of a huge number takes long and of a huge list is huge.
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a huge number"
    if isinstance(value, (list, dict)):
        kind = "list" if isinstance(value, list) else "object"
        return f"an empty {kind}" if not value else f"{'a' if kind == 'list' else 'an'} {kind} of {len(value)}"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else ascii(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class StreamOptions(_Strict):
    """include_usage: a last chunk without choices carries the usage."""

    include_usage: bool | None = None


class CompletionRequest(_Strict):
    """Fields as in OpenAI's API, which has the defaults of those that are left out or null.

    Ours: retrieve ("on", "off" or a policy), relation, popularity, num_neighbors, top_k, repetition_penalty. The
    server's limits apply.
    """

    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts), WithJsonSchema(_PROMPT_SCHEMA)]
    model: str | None = Field(None, description="As in GET /v1/models; left out: the model that is served.")
    max_tokens: int | None = Field(None, ge=1, description="New tokens per choice, 16 by default.")
    temperature: Annotated[float, AfterValidator(_temperature)] | None = Field(
        None, ge=0, le=2, description="0 takes the most probable token; 1 by default."
    )
    top_p: float | None = Field(None, gt=0, le=1, description="Nucleus sampling, 1 by default.")
    top_k: int | None = Field(None, ge=1, le=2**31 - 1, description="Draw among so many; all by default.")
    repetition_penalty: float | None = Field(
        None, ge=1, le=10, description="Keskar et al. 2019; 1 by default: no penalty."
    )
    n: int | None = Field(None, ge=1, description="Choices per prompt, 1 by default.")
    seed: int | None = Field(
        None, ge=0, le=LARGEST_SEED, description="Choice i of a prompt is drawn with seed + i; random by default."
    )
    stream: bool | None = Field(None, description="Server-sent events, ended by [DONE].")
    stream_options: StreamOptions | None = None
    logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_LOGPROBS,
        description="Log-probabilities of each new token and of so many most probable ones.",
    )
    echo: bool | None = Field(None, description="The text of a choice begins with its prompt.")
    stop: Annotated[
        tuple[str, ...],
        PlainValidator(_stops),
        WithJsonSchema(
            {
                "description": "Generation stops before the first of these.",
                "anyOf": [
                    {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
                    {
                        "type": "array",
                        "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
                        "maxItems": MAX_STOPS,
                    },
                    {"type": "null"},
                ],
            }
        ),
    ] = ()
    user: str | None = Field(None, max_length=256, description="Written to the server's log line of the generation.")
    retrieve: str | None = Field(
        None,
        max_length=64,
        description='"on", "off", "every:TOKENS" (1 to the chunk length), "adaptive:THRESHOLD" (a probability), or '
        "\"policy\": as the server's policy decides for each prompt; the server's own setting by default.",
    )
    relation: Annotated[
        str | tuple[str | None, ...] | None,
        PlainValidator(_relations),
        WithJsonSchema(
            _one_or_each(
                {"type": "string", "maxLength": MAX_RELATION_CHARACTERS},
                "What is asked about the subject, for a policy of popularity: one for all prompts, or one each.",
            )
        ),
    ] = None
    popularity: Annotated[
        float | tuple[float | None, ...] | None,
        PlainValidator(_popularities),
        WithJsonSchema(
            _one_or_each(
                {"type": "number", "minimum": 0},
                "Monthly page views of the subject, for a policy of popularity, null where unknown.",
            )
        ),
    ] = None
    num_neighbors: int | None = Field(None, ge=1, description="Neighbors per chunk, at most the server's setting.")
    presence_penalty: Annotated[None, _not_offered(0, "repetition_penalty is"), WithJsonSchema({"enum": [None, 0]})] = (
        None
    )
    frequency_penalty: Annotated[
        None, _not_offered(0, "repetition_penalty is"), WithJsonSchema({"enum": [None, 0]})
    ] = None
    best_of: Annotated[None, _not_offered(1, "ask for n choices"), WithJsonSchema({"enum": [None, 1]})] = None
    suffix: Annotated[None, _not_offered("", "leave it out"), WithJsonSchema({"enum": [None, ""]})] = None
    logit_bias: Annotated[None, _not_offered({}, "leave it out"), WithJsonSchema({"enum": [None, {}]})] = None


def parse_completion_request(body: bytes) -> CompletionRequest:
    """The request of a JSON body. Raises ApiError 400 with one line that names the field, expected and found."""
    try:
        request = CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None
    if request.stream_options is not None and not request.stream:
        raise invalid("stream_options", "expected only together with stream: true")
    for name in ("relation", "popularity"):
        value = getattr(request, name)
        if isinstance(value, tuple) and len(value) != len(request.prompt):
            raise invalid(name, f"expected one for each of the {len(request.prompt)} prompts, found {len(value)}")
    if request.echo and request.logprobs is not None:
        raise invalid("echo", "is not supported together with logprobs: the prompt's tokens are not scored")
    return request


def _explain(error: ValidationError) -> ApiError:
    errors = error.errors(include_url=False, include_context=False)
    # A field that nobody knows explains the others.
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    param = _shorten(".".join(str(part) for part in first["loc"])) or None
    found = "" if first["type"] in ("value", "missing") else f", found {_show(first['input'])}"
    if first["type"] == "json_invalid":
        # The message of the parser: what, line and column.
        return invalid(None, f"body: expected JSON in UTF-8; {first['msg'].removeprefix('Invalid JSON: ')}")
    if param is None:
        return invalid(None, f"body: expected a JSON object{found}")
    if first["type"] == "extra_forbidden":
        known = ", ".join((StreamOptions if len(first["loc"]) > 1 else CompletionRequest).model_fields)
        return invalid(param, f"unknown field; known are {known}")
    if first["type"] == "missing":
        return invalid(param, "required, but not given")
    message = first["msg"].replace("Input should", "expected", 1).replace("expected be", "expected", 1)
    return invalid(param, (message[0].lower() + message[1:] if message[:1].isupper() else message) + found)


def _shorten(name: str) -> str:
    # The names of unknown fields are the client's: quoted where they are not plain.
    text = name if name.isascii() and name.isprintable() else ascii(name)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
