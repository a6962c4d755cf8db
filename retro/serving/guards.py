"""ASGI middleware: who may talk to the server, what every answer carries, and what is logged and counted of it.

The guards keep web pages of others away from a server on the reader's own machine. A page can send requests to
127.0.0.1, and by DNS rebinding under its own name; so names that are not ours are refused (Host), and so are requests
that a browser made for another origin (Origin).
"""

from __future__ import annotations

import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from starlette.responses import JSONResponse

from retro.serving.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from retro.serving.metrics import Metrics

logger = logging.getLogger("retro.serving")

#: Of everything but the page: nothing that is loaded as a document may do anything.
STRICT_POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_HOST = re.compile(r"(\[(?P<address>[0-9a-f:.]+)\]|(?P<name>[^\[\]:@/?#\s]+))(:[0-9]*)?")
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-resource-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"content-security-policy": STRICT_POLICY.encode(),
    b"cache-control": b"no-store",
}


class SecurityHeaders:
    """Adds the headers that an answer does not set itself."""

    def __init__(self, app: ASGIApp, shared: bool = False) -> None:
        """shared: pages of other origins may read answers (those that CORS allows)."""
        self.app = app
        self._headers = {
            name: value for name, value in _HEADERS.items() if not (shared and name == b"cross-origin-resource-policy")
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name.lower() for name, _ in message["headers"]}
                added = [(name, value) for name, value in self._headers.items() if name not in present]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        await self.app(scope, receive, with_headers)


class HostGuard:
    """Refuses requests that are addressed to a foreign name (421) or come from a foreign web page (403).

    names: besides localhost and IP addresses (which no rebinding can bring about); "*": any. origins: scheme://host of
    pages, besides the server's own.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str], origins: Iterable[str]) -> None:
        self.app = app
        self._names = {name.lower() for name in names} | {"localhost"}
        self._origins = {origin.lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = [(name, value.decode("latin-1").strip().lower()) for name, value in scope["headers"]]
        hosts = [value for name, value in headers if name == b"host"]
        origins = [value for name, value in headers if name == b"origin"]
        error = None
        if len(hosts) != 1 or not self._is_ours(_name(hosts[0])):
            error = ApiError(
                421,
                f"Host: expected localhost, an IP address or a name of allowed_hosts, found {', '.join(hosts)!a}",
                param="host",
            )
        elif any(not self._may_ask(origin, hosts[0]) for origin in origins):
            error = ApiError(
                403, "Origin: pages of this origin may not use the server (allowed_origins)", param="origin"
            )
        if error is not None:
            return await JSONResponse(error.body(), error.status)(scope, receive, send)
        await self.app(scope, receive, send)

    def _is_ours(self, name: str) -> bool:
        if name and (name in self._names or "*" in self._names):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _may_ask(self, origin: str, host: str) -> bool:
        scheme, separator, place = origin.partition("://")
        if origin in self._origins:
            return True
        default = {"http": ":80", "https": ":443"}.get(scheme)
        # Behind a proxy that speaks TLS our own scheme is not the page's: only the place is compared.
        return separator != "" and default is not None and place.removesuffix(default) == host.removesuffix(default)


def _name(host: str) -> str:
    """The name or address of a Host header without its port; "" if it is malformed."""
    match = _HOST.fullmatch(host)
    return (match["address"] or match["name"]) if match else ""


class Observer:
    """Outermost: gives requests an id, logs a line and counts each, and answers 500 for what nobody caught."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Iterable[str]) -> None:
        """paths: those that are counted by name; all others are "other", so that clients cannot make up labels."""
        self.app, self._metrics, self._paths = app, metrics, frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        begin = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            logger.exception("request %s failed", request_id)
            if status == 0:
                error = ApiError(500, "the server failed; its log says how", code="internal_error")
                await JSONResponse(error.body(), error.status)(scope, receive, watched)
            else:
                raise
        finally:
            self._record(scope, status, time.perf_counter() - begin, request_id)

    def _record(self, scope: Scope, status: int, seconds: float, request_id: str) -> None:
        path = scope["path"] if scope["path"] in self._paths else "other"
        method = scope["method"] if scope["method"] in _METHODS else "other"
        # 499: the client went away before there was an answer.
        self._metrics.requests.labels(method, path, str(status or 499)).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        # The path as it was sent: decoded it may hold line breaks, which would forge log lines.
        raw = scope.get("raw_path", b"").decode("latin-1")
        shown = ascii(raw)[1:-1][:200]
        level = logging.DEBUG if path in ("/health", "/ready", "/metrics") and status == 200 else logging.INFO
        logger.log(level, "%s %s %s %s %.3fs id=%s", _client(scope), method, shown, status or 499, seconds, request_id)


_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


def _client(scope: Any) -> str:
    client = scope.get("client")
    return f"{client[0]}:{client[1]}" if client else "-"
