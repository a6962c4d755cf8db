"""One thread that drives the engine, and a bridge from it to asyncio.

The engine is synchronous and belongs to this thread alone; everybody else submits and cancels through a locked list.
What a step made is handed over to each event loop in one call.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from retro.config.errors import RetroError

logger = logging.getLogger("retro.serving")


class StepUpdate(Protocol):
    """What one step made for one request: retro.inference.engine.Update."""

    @property
    def ticket(self) -> int: ...
    @property
    def finished(self) -> Any: ...


class BatchEngine(Protocol):
    """The part of retro.inference.engine.Engine that is driven here."""

    @property
    def active(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    def submit(self, request: Any, /) -> int: ...
    def cancel(self, ticket: int, /) -> Any: ...
    def step(self) -> Sequence[Any]: ...


class EngineFailure(Exception):
    """The engine failed under this request, and the log says how; or (shutdown) it was stopped."""

    def __init__(self, message: str, shutdown: bool = False) -> None:
        super().__init__(message)
        self.shutdown = shutdown


class RequestRefused(Exception):
    """The engine does not take this request; the message says why."""


class Generation:
    """One request inside the engine, seen from an event loop: `async for update in generation`.

    Ends after the update that is `finished`. Raises RequestRefused or EngineFailure.
    """

    def __init__(self, thread: EngineThread, request: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.request, self.loop = request, loop
        self._thread = thread
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        #: Nothing more will come.
        self.ended = False

    def deliver(self, event: Any) -> None:
        """Called in the loop."""
        self._events.put_nowait(event)

    def cancel(self) -> None:
        """Give the slot back with the next step. Does nothing once the generation has ended."""
        if not self.ended:
            self.ended = True
            self._thread.cancel(self)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Any:
        if self.ended:
            raise StopAsyncIteration
        event = await self._events.get()
        if isinstance(event, Exception):
            self.ended = True
            raise event
        self.ended = event.finished is not None
        return event


class EngineThread:
    """Drives one engine until `stop`. on_step(seconds, active, waiting), on_failure(): called in the thread.

    build: makes the engine, also anew after a failure: what it was working on is lost with it.
    """

    def __init__(
        self,
        build: Callable[[], BatchEngine],
        on_step: Callable[[float, int, int], None] = lambda seconds, active, waiting: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._build, self._on_step, self._on_failure = build, on_step, on_failure
        self._engine = build()
        self._condition = threading.Condition()
        self._submitted: list[Generation] = []
        self._cancelled: list[Generation] = []
        self._stopping = False
        # Of the thread alone:
        self._by_ticket: dict[int, Generation] = {}
        self._tickets: dict[Generation, int] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are worked on."""
        return self._thread.is_alive() and not self._stopping

    def submit(self, request: Any) -> Generation:
        """Queue a request (an EngineRequest); called in a running event loop. Raises EngineFailure if it is stopped."""
        generation = Generation(self, request, asyncio.get_running_loop())
        with self._condition:
            if not self.alive:
                raise EngineFailure("the engine has stopped", shutdown=True)
            self._submitted.append(generation)
            self._condition.notify()
        return generation

    def cancel(self, generation: Generation) -> None:
        """Take a request out of the engine with the next step."""
        with self._condition:
            self._cancelled.append(generation)
            self._condition.notify()

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread after its current step; requests inside fail. Waits at most `timeout` seconds."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._submitted or self._cancelled or self._stopping or self._by_ticket):
                    self._condition.wait()
                submitted, self._submitted = self._submitted, []
                cancelled, self._cancelled = self._cancelled, []
                if self._stopping:
                    break
            if not self._work(submitted, cancelled) and not self._rebuild():
                break
        with self._condition:
            self._stopping = True
            left = [*self._by_ticket.values(), *self._submitted, *submitted]
        self._fail(left, EngineFailure("the server is shutting down", shutdown=True))

    def _work(self, submitted: Sequence[Generation], cancelled: Sequence[Generation]) -> bool:
        """One round; False if the engine failed, and everything inside with it."""
        try:
            self._take(submitted, cancelled)
            if self._by_ticket:
                self._step()
            if not self._by_ticket:
                self._on_step(0.0, self._engine.active, self._engine.waiting)
        except Exception:
            logger.exception("the engine failed; %d requests are lost, it is built anew", len(self._by_ticket))
            self._fail([*self._by_ticket.values(), *submitted], EngineFailure("the engine failed"))
            self._on_failure()
            return False
        return True

    def _take(self, submitted: Sequence[Generation], cancelled: Sequence[Generation]) -> None:
        gone = set(cancelled)
        for generation in submitted:
            if generation in gone:
                continue
            try:
                ticket = self._engine.submit(generation.request)
            except (RetroError, ValueError) as error:
                self._send({generation.loop: [(generation, RequestRefused(str(error)))]})
                continue
            self._by_ticket[ticket], self._tickets[generation] = generation, ticket
        for generation in cancelled:
            known = self._tickets.pop(generation, None)
            if known is not None:
                del self._by_ticket[known]
                self._engine.cancel(known)

    def _step(self) -> None:
        begin = time.perf_counter()
        updates = self._engine.step()
        seconds = time.perf_counter() - begin
        events: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Any]]] = {}
        for update in updates:
            generation = self._by_ticket.get(update.ticket)
            if generation is None:
                continue
            events.setdefault(generation.loop, []).append((generation, update))
            if update.finished is not None:
                del self._by_ticket[update.ticket], self._tickets[generation]
        self._send(events)
        self._on_step(seconds, self._engine.active, self._engine.waiting)

    def _fail(self, generations: Sequence[Generation], error: Exception) -> None:
        self._by_ticket.clear()
        self._tickets.clear()
        for generation in dict.fromkeys(generations):
            self._send({generation.loop: [(generation, error)]})

    def _rebuild(self) -> bool:
        # The memory of the old one first: two may not fit.
        del self._engine
        try:
            self._engine = self._build()
        except Exception:
            logger.exception("the engine cannot be built again; the server answers 503 from now on")
            return False
        return True

    @staticmethod
    def _send(events: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Any]]]) -> None:
        for loop, pairs in events.items():
            try:
                loop.call_soon_threadsafe(_deliver, pairs)
            except RuntimeError:  # the loop was closed: nobody waits any more
                logger.debug("an event loop was closed under %d requests", len(pairs))


def _deliver(pairs: Sequence[tuple[Generation, Any]]) -> None:
    for generation, event in pairs:
        generation.deliver(event)
