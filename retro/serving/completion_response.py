"""What POST /v1/completions and GET /v1/models answer: OpenAI's objects, and `retrieved`."""

from __future__ import annotations

import json
from typing import Any, Literal

from pydantic import BaseModel, Field


class Neighbor(BaseModel):
    """A chunk of the database. text: its own; continuation: what follows it in its document, as far as it was read."""

    document: str
    title: str | None
    chunk: int
    distance: float | None
    text: str
    continuation: str


class Query(BaseModel):
    """The tokens that were searched with: token_start..token_stop-1 of prompt and new tokens together."""

    token_start: int
    token_stop: int
    text: str


class Served(BaseModel):
    """New tokens token_start..token_stop-1 (from 0) and characters text_start..text_stop-1 of the choice's text that
    were predicted with these neighbors. Empty: they served the prompt only. A stop of null: not known yet (streaming).
    """

    token_start: int
    token_stop: int | None
    text_start: int
    text_stop: int | None


class Retrieved(BaseModel):
    """One retrieval. Streamed twice: with `query` and `neighbors` in the chunk in which it begins to serve, and with
    the stops of `served` alone once they are known."""

    index: int
    query: Query | None = None
    served: Served
    neighbors: list[Neighbor] | None = None


class Logprobs(BaseModel):
    """Per new token: its text, natural log-probability, the most probable alternatives, and place in the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class Choice(BaseModel):
    """finish_reason: "stop" (end of text or a stop string), "length", or null while streaming."""

    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None
    retrieved: list[Retrieved] = Field(default_factory=list)


class Usage(BaseModel):
    """Tokens; those of a prompt once, however many choices it has."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Completion(BaseModel):
    """A whole answer, or one chunk of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage | None = None


class ErrorDetail(BaseModel):
    """message: one line; param: the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every answer with a status of 400 or more."""

    error: ErrorDetail


def chunk_json(completion: Completion, usage: bool) -> str:
    """One line of a stream: fields that say nothing are left out; `usage` is there, null too, if it was asked for."""
    data: dict[str, Any] = {
        "id": completion.id,
        "object": completion.object,
        "created": completion.created,
        "model": completion.model,
        "choices": [_piece(choice) for choice in completion.choices],
    }
    if usage:
        data["usage"] = None if completion.usage is None else completion.usage.model_dump()
    # ASCII: a line separator inside a text must not end the event.
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _piece(choice: Choice) -> dict[str, Any]:
    # Most pieces are a few characters: pydantic's way to a dict would take longer than to make them.
    data: dict[str, Any] = {
        "index": choice.index,
        "text": choice.text,
        "logprobs": None if choice.logprobs is None else choice.logprobs.model_dump(),
        "finish_reason": choice.finish_reason,
    }
    if choice.retrieved:
        data["retrieved"] = [entry.model_dump() for entry in choice.retrieved]
        for entry in data["retrieved"]:
            for name in ("query", "neighbors"):
                if entry[name] is None:
                    del entry[name]
    return data
