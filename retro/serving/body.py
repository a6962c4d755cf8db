"""Reading a request's body within its limits of size and time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from retro.serving.errors import ApiError

if TYPE_CHECKING:
    from starlette.requests import Request


class ClientGone(Exception):
    """The client closed the connection."""


async def read_json_body(request: Request, max_bytes: int, timeout: float) -> bytes:
    """The whole body. Raises ApiError 415 for another content type, 413 as soon as more than `max_bytes` are announced
    or have come, 408 if it takes longer than `timeout` seconds, and ClientGone."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Also keeps forms of foreign pages out, which browsers send without asking: they cannot have this type.
    if kind != "application/json":
        raise ApiError(
            415, f"Content-Type: expected application/json, found {ascii(kind[:60]) if kind else 'none'}", param="body"
        )
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout):
            while True:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                size += len(part)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(
            408, f"body: expected within {timeout:g} seconds", param="body", headers={"connection": "close"}
        ) from None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"body: expected at most {limit:,} bytes", param="body", code="body_too_large")
