"""uvicorn's HTTP/1.1 connection with the patience of a server: times for heads, bodies and slow readers, a limit of
connections, and errors as JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from retro.serving.errors import ApiError

_JSON = "application/json"


class PatientConnection(H11Protocol):
    """A connection is closed when a request's head takes longer than head_timeout from its first byte (or from the
    connection's opening), its body longer than body_timeout, or when the client takes nothing for write_timeout."""

    max_connections = 512
    head_timeout = 10.0
    body_timeout = 10.0
    write_timeout = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._reading: asyncio.TimerHandle | None = None
        self._phase: object = None
        self._writing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            error = ApiError(503, "the server has too many connections; try again later", code="too_many_connections")
            transport.write(plain_response(error))
            transport.close()
            return
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        try:
            super().data_received(data)
        except h11.LocalProtocolError:
            # What came is not HTTP, and the answer to the request before it has begun.
            self._abort()
            return
        self._watch()

    def on_response_complete(self) -> None:
        """After each answer."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        for timer in (self._reading, self._writing):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._writing = self.loop.call_later(self.write_timeout, self._abort)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """What came is not HTTP."""
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self._abort()
            return
        self.transport.write(plain_response(ApiError(400, msg.rstrip(".") + ": not HTTP/1.1", code="bad_http")))
        self.transport.close()

    def _should_upgrade(self) -> bool:
        return False  # there is nothing to upgrade to; such requests are answered as usual

    def _watch(self) -> None:
        """Keep one timer per phase of reading: a phase that goes on keeps its timer, however many bytes drip in."""
        state = self.conn.their_state
        phase: object = None
        timeout = 0.0
        if self.transport.is_closing():
            pass
        elif state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            phase, timeout = ("head", self.cycle), self.head_timeout
        elif state is h11.SEND_BODY:
            # One second more than the application waits: it answers 408 first.
            phase, timeout = ("body", self.cycle), self.body_timeout + 1
        if phase == self._phase:
            return
        self._phase = phase
        if self._reading is not None:
            self._reading.cancel()
        self._reading = self.loop.call_later(timeout, self._abort) if phase is not None else None

    def _abort(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def plain_response(error: ApiError) -> bytes:
    """A whole HTTP answer for a connection that no application serves."""
    body = json.dumps(error.body()).encode()
    head = (
        f"HTTP/1.1 {error.status} {'Bad Request' if error.status == 400 else 'Service Unavailable'}\r\n"
        f"content-type: {_JSON}\r\ncontent-length: {len(body)}\r\nx-content-type-options: nosniff\r\n"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body


def patient_connection(
    *, max_connections: int, head_timeout: float, body_timeout: float, write_timeout: float
) -> Callable[..., Any]:
    """A connection class for uvicorn with these limits (times in seconds)."""
    return type(
        "Connection",
        (PatientConnection,),
        {
            "max_connections": max_connections,
            "head_timeout": head_timeout,
            "body_timeout": body_timeout,
            "write_timeout": write_timeout,
        },
    )
