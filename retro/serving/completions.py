"""POST /v1/completions: from a request to choices, whole or as they come."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from retro.config.errors import ConfigError
from retro.config.serving import LimitsConfig
from retro.serving.admission import Admission
from retro.serving.body import ClientGone
from retro.serving.completion_request import LARGEST_SEED, CompletionRequest
from retro.serving.completion_response import Choice, Completion, Usage
from retro.serving.engine_thread import EngineFailure, EngineThread, Generation, RequestRefused
from retro.serving.errors import ApiError, invalid, invalid_choice
from retro.serving.metrics import Metrics
from retro.serving.served_model import GenerationOptions, ServedModel
from retro.serving.served_text import ChoiceText, join_choices

logger = logging.getLogger("retro.serving")

_DEFAULT_MAX_TOKENS = 16


@dataclasses.dataclass
class PlannedChoice:
    """One choice to generate: the engine's request, and what becomes of its updates."""

    request: Any
    text: ChoiceText


class CompletionJob:
    """One completion request: checked, admitted, generated, counted.

    `async with` holds its places in the server; leaving cancels what has not finished. Raises ApiError.
    """

    def __init__(
        self,
        request: CompletionRequest,
        model: ServedModel,
        thread: EngineThread,
        admission: Admission,
        metrics: Metrics,
        limits: LimitsConfig,
    ) -> None:
        self.request, self.model = request, model
        self._thread, self._admission, self._metrics, self._limits = thread, admission, metrics, limits
        self.id = f"cmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._begin = time.perf_counter()
        self._choices: list[PlannedChoice] = []
        self._generations: list[Generation] = []
        self._prompt_tokens = 0
        self._places = 0
        self._first_token: float | None = None
        if request.model is not None and request.model != model.name:
            raise ApiError(
                404,
                f"model: expected {model.name!r}, the one that is served, found {request.model[:60]!a}",
                param="model",
                code="model_not_found",
            )
        check_limits(request, model, limits)

    @property
    def num_choices(self) -> int:
        """Prompts times n."""
        return len(self.request.prompt) * (self.request.n or 1)

    def _plan(self) -> list[PlannedChoice]:
        """Encode the prompts. Raises ApiError."""
        request, model = self.request, self.model
        seed = request.seed if request.seed is not None else secrets.randbelow(2**31)
        planned: list[PlannedChoice] = []
        longest = self._limits.max_prompt_tokens or model.window_length
        for number, prompt in enumerate(request.prompt):
            ids = model.encode(prompt) if isinstance(prompt, str) else prompt
            param = "prompt" if len(request.prompt) == 1 else f"prompt.{number}"
            if len(ids) > longest:
                raise invalid(param, f"expected at most {longest} tokens, found {len(ids)}", "context_length_exceeded")
            if isinstance(prompt, tuple) and max(ids) >= model.tokenizer.vocab_size:
                raise invalid(param, f"expected token ids below {model.tokenizer.vocab_size}, found a greater one")
            self._prompt_tokens += len(ids)
            echo = (prompt if isinstance(prompt, str) else model.tokenizer.decode(ids)) if request.echo else ""
            for i in range(request.n or 1):
                try:
                    engine_request = model.make_request(engine_options(request, ids, seed + i, number))
                except ConfigError as error:
                    raise invalid_choice(str(error)) from None
                text = ChoiceText(
                    len(planned),
                    ids,
                    model.tokenizer,
                    chunk_length=model.chunk_length,
                    describe=model.describe,
                    top_logprobs=request.logprobs,
                    echo=echo,
                )
                planned.append(PlannedChoice(engine_request, text))
        return planned

    async def __aenter__(self) -> CompletionJob:
        try:
            self._admission.enter(self.num_choices)
        except ApiError as error:
            self._metrics.rejected.labels(error.code).inc()
            raise
        self._places = self.num_choices
        try:
            # Long prompts take a while: not in the event loop, and not before there is a place.
            self._choices = await asyncio.to_thread(self._plan)
            self._generations = [self._thread.submit(choice.request) for choice in self._choices]
        except EngineFailure as error:
            self._admission.leave(self._places)
            raise ApiError(503, f"{error}; try again later", code="engine_stopped") from None
        except BaseException:
            self._admission.leave(self._places)
            raise
        self._metrics.prompt_tokens.inc(self._prompt_tokens)
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        unfinished = [generation for generation in self._generations if not generation.ended]
        for generation in unfinished:
            generation.cancel()
        self._admission.leave(self._places)
        seconds = time.perf_counter() - self._begin
        new_tokens = sum(choice.text.num_tokens for choice in self._choices)
        self._metrics.new_tokens.inc(new_tokens)
        outcome = "done"
        if unfinished or error is not None:
            outcome = _reason(error)
            self._metrics.cancelled.labels(outcome).inc()
        else:
            self._metrics.generation_seconds.observe(seconds)
        first = f"{self._first_token:.3f}s" if self._first_token is not None else "-"
        logger.info(
            "generation %s %s: %d choices, %d + %d tokens, first after %s, all %.3fs%s",
            self.id,
            outcome,
            len(self._choices),
            self._prompt_tokens,
            new_tokens,
            first,
            seconds,
            f" user={self.request.user!a}" if self.request.user is not None else "",
        )

    async def pieces(self) -> AsyncGenerator[list[Choice], None]:
        """Pieces of all choices as they come, those that are there together in one list. Raises ApiError 500 or 400 if
        the engine fails or refuses."""
        merged: asyncio.Queue[Choice | BaseException | None] = asyncio.Queue()

        async def follow(generation: Generation, text: ChoiceText) -> None:
            try:
                async for update in generation:
                    # Texts of neighbors are read from disk.
                    piece = await asyncio.to_thread(text.feed, update) if update.evidence else text.feed(update)
                    if self._first_token is None and update.tokens:
                        self._first_token = time.perf_counter() - self._begin
                        self._metrics.first_token_seconds.observe(self._first_token)
                    self._metrics.retrievals.inc(len(update.evidence))
                    if update.finished is not None:
                        self._leave_place(text)
                    if piece is not None:
                        merged.put_nowait(piece)
                merged.put_nowait(None)
            except Exception as error:
                merged.put_nowait(error)

        tasks = [
            asyncio.create_task(follow(generation, choice.text))
            for generation, choice in zip(self._generations, self._choices, strict=True)
        ]
        try:
            left = len(tasks)
            while left:
                items = [await merged.get()]
                while not merged.empty():
                    items.append(merged.get_nowait())
                if ready := [item for item in items if isinstance(item, Choice)]:
                    yield ready
                left -= items.count(None)
                for item in items:
                    if isinstance(item, BaseException):
                        raise _as_api_error(item)
        finally:
            for task in tasks:
                task.cancel()

    def _leave_place(self, text: ChoiceText) -> None:
        self._places -= 1
        self._admission.leave(1, time.perf_counter() - self._begin)
        self._metrics.choices.labels(text.finish).inc()

    def completion(self, choices: list[Choice], usage: bool) -> Completion:
        """The answer, or a chunk of it, around these choices."""
        return Completion(
            id=self.id,
            created=self.created,
            model=self.model.name,
            choices=choices,
            usage=self.usage() if usage else None,
        )

    def usage(self) -> Usage:
        """Tokens so far."""
        new = sum(choice.text.num_tokens for choice in self._choices)
        return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=new, total_tokens=self._prompt_tokens + new)

    async def whole(self) -> Completion:
        """The answer that is not streamed."""
        pieces: dict[int, list[Choice]] = {}
        async with aclosing(self.pieces()) as source:
            async for ready in source:
                for piece in ready:
                    pieces.setdefault(piece.index, []).append(piece)
        return self.completion([join_choices(pieces[index]) for index in sorted(pieces)], usage=True)


def engine_options(
    request: CompletionRequest, prompt: tuple[int, ...], seed: int, number: int = 0
) -> GenerationOptions:
    """What one choice of prompt `number` asks of the engine: the request's fields, and OpenAI's defaults for those that
    are not given."""

    def given(value: Any, default: Any) -> Any:
        return default if value is None else value

    def of_prompt(value: Any) -> Any:
        return value[number] if isinstance(value, tuple) else value

    return GenerationOptions(
        prompt=prompt,
        max_new_tokens=given(request.max_tokens, _DEFAULT_MAX_TOKENS),
        temperature=given(request.temperature, 1.0),
        top_p=given(request.top_p, 1.0),
        top_k=request.top_k,
        repetition_penalty=given(request.repetition_penalty, 1.0),
        seed=seed,
        stop=request.stop,
        retrieve=request.retrieve,
        num_neighbors=request.num_neighbors,
        logprobs=request.logprobs,
        relation=of_prompt(request.relation),
        popularity=of_prompt(request.popularity),
    )


def check_limits(request: CompletionRequest, model: ServedModel, limits: LimitsConfig) -> None:
    """Raise ApiError 400 for what exceeds the server's limits or the model's abilities."""
    if len(request.prompt) > limits.max_prompts:
        raise invalid("prompt", f"expected at most {limits.max_prompts} prompts, found {len(request.prompt)}")
    choices = len(request.prompt) * (request.n or 1)
    if choices > limits.max_choices:
        raise invalid("n", f"expected at most {limits.max_choices} choices (prompts times n), found {choices}")
    if request.max_tokens is not None and request.max_tokens > limits.max_tokens:
        raise invalid("max_tokens", f"expected at most {limits.max_tokens}, found {_short(request.max_tokens)}")
    if request.seed is not None and request.seed + (request.n or 1) - 1 > LARGEST_SEED:
        raise invalid("seed", f"expected at most {LARGEST_SEED} for the last of n choices")
    if request.num_neighbors is not None and request.retrieve in ("off", "never"):
        raise invalid("num_neighbors", f"retrieve is {request.retrieve!r}; leave it out")
    if request.num_neighbors is not None:
        if not model.retrieves:
            raise invalid("num_neighbors", "this server retrieves nothing; leave it out")
        if request.num_neighbors > model.num_neighbors:
            most = model.num_neighbors
            raise invalid("num_neighbors", f"expected at most {most}, found {_short(request.num_neighbors)}")


def _short(number: int) -> str:
    return str(number) if abs(number) < 10**20 else "a huge number"


def _reason(error: BaseException | None) -> str:
    if isinstance(error, (ClientGone, asyncio.CancelledError, GeneratorExit)):
        return "disconnect"
    if isinstance(error, TimeoutError) or (isinstance(error, ApiError) and error.status == 504):
        return "timeout"
    if isinstance(error, ApiError) and error.status == 503:
        return "shutdown"
    return "refused" if isinstance(error, ApiError) and error.status < 500 else "failure"


def _as_api_error(error: BaseException) -> BaseException:
    if isinstance(error, EngineFailure):
        if error.shutdown:
            return ApiError(503, str(error), code="shutting_down", headers={"connection": "close"})
        return ApiError(500, "the engine failed on this request; the server's log says how", code="engine_failure")
    if isinstance(error, RequestRefused):
        return invalid_choice(str(error))
    return error
