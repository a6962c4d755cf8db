"""Errors as clients see them: an HTTP status and OpenAI's error object, `{"error": {message, type, param, code}}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {
    400: "invalid_request_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    421: "permission_error",
    429: "rate_limit_error",
    503: "server_unavailable_error",
    504: "timeout_error",
}


class ApiError(Exception):
    """Ends a request with `status`. message: one line; param: the field that is wrong; code: short, for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(param: str | None, message: str, code: str | None = None) -> ApiError:
    """A 400 that names the field at the message's begin."""
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code=code)


def invalid_choice(message: str) -> ApiError:
    """A 400 of a message of ours that begins with the name of a setting, as those of ConfigError do."""
    name, separator, _ = message.partition(":")
    return ApiError(400, message, param=name if separator and name.isidentifier() else None)
