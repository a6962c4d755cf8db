"""An engine without a model: continues a prompt by known words, one per step, with evidence at every chunk."""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import Any

from retro.config.errors import ConfigError
from retro.inference.language_model import ChunkEvidence, Generated, Retrieved
from retro.serving.completion_response import Neighbor
from retro.serving.served_model import GenerationOptions, ServedModel

CHUNK = 4
WORDS = ["alpha ", "beta ", "gamma ", "délta ", "epsilon ", "zeta ", "êta ", "theta "]
#: Of the neighbor of chunk 7: text that a page must not run.
HOSTILE = "<script>window.hacked=1</script><img src=x onerror=\"window.hacked=1\"> & 'quotes'"


class ByteTokenizer:
    """One token per byte: ids 0..255, begin 256, end 257."""

    vocab_size, bos_id, eos_id, pad_id = 258, 256, 257, 257
    lossless = True

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Any) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""


@dataclasses.dataclass(frozen=True)
class FakeLogprob:
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class FakeUpdate:
    ticket: int
    tokens: tuple[int, ...]
    text: str
    logprobs: tuple[FakeLogprob, ...]
    evidence: tuple[ChunkEvidence, ...]
    finished: Generated | None


@dataclasses.dataclass
class _Sequence:
    options: GenerationOptions
    content: bytes
    made: int = 0
    shown: int = 0
    evidence: list[ChunkEvidence] = dataclasses.field(default_factory=list)


class FakeEngine:
    """Follows the contract of retro.inference.engine.Engine. Prompts that hold a word of these behave:

    "crash" fails a step, "refuse" is refused by submit, "slow" takes 20 ms a step. `gate`: steps wait for it.
    """

    def __init__(self, slots: int = 4) -> None:
        self.slots, self._ticket = slots, 0
        self._active: dict[int, _Sequence] = {}
        self._waiting: dict[int, _Sequence] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.most_active = self.steps = 0

    @property
    def active(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def submit(self, request: GenerationOptions) -> int:
        prompt = bytes(i for i in request.prompt if i < 256)
        if b"refuse" in prompt:
            raise ConfigError("prompt: this engine refuses it")
        self._ticket += 1
        start = request.seed % len(WORDS) if request.temperature > 0 else 0
        words = "".join(WORDS[(start + i) % len(WORDS)] for i in range(request.max_new_tokens))
        self._waiting[self._ticket] = _Sequence(request, words.encode())
        return self._ticket

    def cancel(self, ticket: int) -> None:
        self._active.pop(ticket, None)
        self._waiting.pop(ticket, None)

    def step(self) -> list[FakeUpdate]:
        self.gate.wait(30)
        self.steps += 1
        while self._waiting and len(self._active) < self.slots:
            ticket = next(iter(self._waiting))
            self._active[ticket] = self._waiting.pop(ticket)
        self.most_active = max(self.most_active, len(self._active))
        if any(b"slow" in self._text(s) for s in self._active.values()):
            time.sleep(0.02)
        if any(b"crash" in self._text(s) for s in self._active.values()):
            raise RuntimeError("the device fell off")
        return [self._advance(ticket, sequence) for ticket, sequence in list(self._active.items())]

    @staticmethod
    def _text(sequence: _Sequence) -> bytes:
        return bytes(i for i in sequence.options.prompt if i < 256)

    def _advance(self, ticket: int, sequence: _Sequence) -> FakeUpdate:
        options = sequence.options
        evidence = []
        length = len(options.prompt) + sequence.made
        if options.retrieve != "off" and sequence.made % CHUNK == 0:
            neighbors = tuple(Retrieved(7 + i, 0.5 + i, f"doc-{7 + i}") for i in range(options.num_neighbors or 2))
            evidence.append(ChunkEvidence(max(0, length - CHUNK), length, neighbors))
            sequence.evidence += evidence
        token = sequence.content[sequence.made]
        sequence.made += 1
        made = sequence.content[: sequence.made]
        text = made.decode("utf-8", "ignore")
        stop = "length" if sequence.made >= options.max_new_tokens else None
        held = 0
        for until in options.stop:
            place = text.find(until)
            if place >= 0:
                text, stop = text[:place], "until"
            else:
                held = max([held, *(n for n in range(1, len(until)) if text.endswith(until[:n]))])
        if stop is None and held:
            text = text[: len(text) - held]
        elif stop == "length":
            text = made.decode("utf-8", "replace")
        new = text[sequence.shown :]
        sequence.shown = max(sequence.shown, len(text))
        logprobs = ()
        if options.logprobs is not None:
            top = tuple((token + i, -0.25 - i) for i in range(options.logprobs))
            logprobs = (FakeLogprob(-0.25, top),)
        finished = None
        if stop is not None:
            del self._active[ticket]
            finished = Generated(options.prompt, tuple(made), text, stop, tuple(sequence.evidence))
        return FakeUpdate(ticket, (token,), new, logprobs, tuple(evidence), finished)


class FakeModel(ServedModel):
    """A served model around the fake engine; the neighbors' texts are made up."""

    def _read_neighbor(self, chunk: int, document: str) -> Neighbor:
        text = HOSTILE if chunk == 7 else f"text of chunk {chunk}"
        return Neighbor(
            document=document, title=f"Title of {document}", chunk=chunk, distance=None, text=text, continuation=" more"
        )


def make_request(options: GenerationOptions) -> GenerationOptions:
    """As the real one, which refuses unknown policies."""
    if options.retrieve not in (None, "on", "off"):
        raise ConfigError(f"retrieve: expected on or off, found {options.retrieve!r}")
    return options


def fake_model(slots: int = 4, engines: list[FakeEngine] | None = None) -> FakeModel:
    """engines: gets every engine that is built."""

    def build() -> FakeEngine:
        engine = FakeEngine(slots)
        if engines is not None:
            engines.append(engine)
        return engine

    return FakeModel(
        name="fake",
        tokenizer=ByteTokenizer(),  # type: ignore[arg-type]
        chunk_length=CHUNK,
        window_length=512,
        num_neighbors=4,
        database=None,
        build_engine=build,
        make_request=make_request,
        slots=slots,
        fingerprint="f" * 16,
        created=1_700_000_000,
    )
