"""The OpenAPI document: FastAPI's, with the schemas of bodies that are read by hand."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from retro.serving.completion_request import CompletionRequest
from retro.serving.completion_response import Completion, ErrorBody

_REFERENCE = "#/components/schemas/{model}"
COMPLETION_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": _REFERENCE.format(model="CompletionRequest")}}},
}


def describe_answers(*statuses: int, ok: Any = None) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: its errors, and what 200 is."""
    error = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="ErrorBody")}}}
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": "An error object", "content": error} for status in statuses
    }
    if ok is not None:
        found[200] = {"description": "OK", "content": ok}
    return found


COMPLETION_ANSWER = {
    "application/json": {"schema": {"$ref": _REFERENCE.format(model="Completion")}},
    "text/event-stream": {"schema": {"type": "string", "description": "data: Completion, ..., data: [DONE]"}},
}


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi()` complete."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            _, found = models_json_schema(
                [(CompletionRequest, "validation"), (Completion, "serialization"), (ErrorBody, "serialization")],
                ref_template=_REFERENCE,
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
            for operation in (operation for item in schema["paths"].values() for operation in item.values()):
                operation["responses"].pop("422", None)  # FastAPI's own, which this server does not answer
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
