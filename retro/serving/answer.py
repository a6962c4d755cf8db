"""The HTTP answer of a completion: whole or streamed, ended in time, and given up when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response

from retro.serving.body import ClientGone
from retro.serving.completion_response import chunk_json
from retro.serving.completions import CompletionJob
from retro.serving.errors import ApiError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_DONE = "data: [DONE]\n\n"


class CompletionAnswer(Response):
    """Runs a job and sends what it makes.

    Until the first piece every failure has its own status; after it, a stream ends with an error object and [DONE].
    """

    def __init__(self, job: CompletionJob, timeout: float) -> None:
        """timeout: seconds for everything, waiting for a slot and sending included."""
        super().__init__()
        self._job, self._timeout = job, timeout
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            await self._run(scope, receive, send)
        except ClientGone:
            pass
        except ApiError as error:
            if not self._started:
                return await JSONResponse(error.body(), error.status, error.headers)(scope, receive, send)
            await self._send_events(send, f"data: {json.dumps(error.body())}\n\n{_DONE}", last=True)

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        job = self._job
        try:
            async with job, asyncio.timeout(self._timeout), cancelled_by_disconnect(receive):
                if job.request.stream:
                    return await self._stream(send)
                completion = await job.whole()
        except TimeoutError:
            raise ApiError(
                504,
                f"not finished within {self._timeout:g} seconds; ask for fewer tokens or try again later",
                code="timeout",
            ) from None
        data = completion.model_dump(mode="json")
        await JSONResponse(data)(scope, receive, send)

    async def _stream(self, send: Send) -> None:
        job = self._job
        options = job.request.stream_options
        usage = options is not None and bool(options.include_usage)
        async with aclosing(job.pieces()) as pieces:
            async for ready in pieces:
                chunks = [chunk_json(job.completion([piece], usage=False), usage) for piece in ready]
                await self._send_events(send, "".join(f"data: {chunk}\n\n" for chunk in chunks))
        end = f"data: {chunk_json(job.completion([], usage=True), True)}\n\n" if usage else ""
        await self._send_events(send, end + _DONE, last=True)

    async def _send_events(self, send: Send, text: str, last: bool = False) -> None:
        if not self._started:
            self._started = True
            headers = [
                (b"content-type", b"text/event-stream; charset=utf-8"),
                (b"cache-control", b"no-store"),
                (b"x-accel-buffering", b"no"),  # proxies must not hold the stream back
            ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode(), "more_body": not last})


@contextlib.asynccontextmanager
async def cancelled_by_disconnect(receive: Receive) -> AsyncIterator[None]:
    """Raises ClientGone out of the block when the client closes the connection; the body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    gone = False

    async def listen() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    listener = asyncio.create_task(listen())
    try:
        yield
    except asyncio.CancelledError:
        # Somebody else (a timeout, the server) may have cancelled as well: then it is theirs.
        if gone and task.uncancel() == 0:
            raise ClientGone from None
        raise
    finally:
        listener.cancel()
