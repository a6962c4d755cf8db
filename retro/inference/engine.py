"""Decoding many requests side by side, each retrieving when its policy says so.

Every step makes one token for every request that has a slot: tokens of all slots go through the model together, all
that retrieve with this token are searched in one batch, and free slots are filled with waiting requests. The prompt is
right-aligned: its last token ends a chunk (the left-padding rule of Wang et al. 2023, section 4.2.3, with a short first
chunk instead of padding, docs/concepts.md), so already the first new token is served by neighbors, however short the
prompt. Each retrieval uses the last M tokens.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from retro.config.errors import ConfigError
from retro.inference.decoded_sequence import DecodedSequence, Retrieval
from retro.inference.evidence import describe_neighbors
from retro.inference.given_neighbors import Neighbors, check_neighbors, lay_out_neighbors
from retro.inference.language_model import ChunkEvidence
from retro.inference.precision import inference
from retro.inference.prediction import Prediction, read_predictions
from retro.inference.prompt_batches import batch_by_length
from retro.inference.requests import EngineRequest, Update
from retro.inference.sampling import Sampler
from retro.inference.stopping import TextStream
from retro.model.decoding import DecodingState

if TYPE_CHECKING:
    from retro.data.chunk_store import ChunkStore
    from retro.data.tokenizer import Tokenizer
    from retro.model import RetroModel
    from retro.retrieval.retriever import Retriever


class Engine:
    """Synchronous: nothing happens but in `step`, in the caller's thread. The tokens of a request do not depend on what
    else is decoded, as far as sums of other shapes round alike.

    window_length: most tokens that the model sees of a sequence, more than a chunk; slots: sequences decoded side by
    side; num_neighbors K: the most that a request may bring; retrieved_neighbors: how many are retrieved, None = K;
    neighbor_length: most tokens of a neighbor that a request brings, 2 M at least; retriever: None = policies are not
    asked; database: the chunks that evidence of requests is in; banned: ids that are never drawn. Raises ConfigError
    for a window that is too short.
    """

    def __init__(
        self,
        model: RetroModel,
        tokenizer: Tokenizer,
        *,
        window_length: int,
        slots: int,
        num_neighbors: int = 0,
        retrieved_neighbors: int | None = None,
        neighbor_length: int = 0,
        retriever: Retriever | None = None,
        database: ChunkStore | None = None,
        banned: Sequence[int] = (),
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        chunk = model.config.chunk_length
        if window_length <= max(chunk, 2):
            raise ConfigError(f"sequence_length: expected more than one chunk of {chunk} tokens, found {window_length}")
        self._model, self._tokenizer = model, tokenizer
        self._window, self._banned, self._precision = window_length, list(banned), precision
        self._neighbor_length = max(2 * chunk, neighbor_length)
        self._num_neighbors = num_neighbors if model.config.is_retro else 0
        self._retrieved = min(
            self._num_neighbors, num_neighbors if retrieved_neighbors is None else retrieved_neighbors
        )
        self._retriever = retriever if self._retrieved else None
        self._database = retriever.database if retriever is not None else database
        self._device = model.embedding.weight.device
        self._banned_ids = torch.tensor(self._banned, dtype=torch.int64, device=self._device)
        self._state = DecodingState(model, slots, window_length, self._num_neighbors, self._neighbor_length)
        # Slot s holds self._running[s]; slots in use are without a gap.
        self._running: list[DecodedSequence] = []
        self._queue: deque[DecodedSequence] = deque()
        self._tickets = 0
        self._failed = False

    @property
    def active(self) -> int:
        """Requests that have a slot."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests that wait for one."""
        return len(self._queue)

    def submit(self, request: EngineRequest) -> int:
        """Queue a request; returns its ticket. Raises ValueError for one that cannot be decoded."""
        vocabulary = self._model.config.vocab_size or 0
        if not request.prompt:
            raise ValueError("prompt: expected at least one token, found none")
        if not 0 <= min(request.prompt) <= max(request.prompt) < vocabulary:
            raise ValueError(f"prompt: expected token ids 0..{vocabulary - 1}, found {list(request.prompt)[:8]}")
        if request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: expected 1 or more, found {request.max_new_tokens}")
        if request.num_neighbors is not None and self._retriever is None:
            raise ValueError(f"num_neighbors: nothing is retrieved, expected None, found {request.num_neighbors}")
        if request.num_neighbors is not None and not 1 <= request.num_neighbors <= self._retrieved:
            raise ValueError(f"num_neighbors: expected 1..{self._retrieved}, found {request.num_neighbors}")
        if request.evidence:
            if self._database is None or len(request.evidence) > self._num_neighbors:
                raise ValueError(
                    f"evidence: expected at most {self._num_neighbors} chunks of the database, found "
                    f"{len(request.evidence)}"
                )
            if not 0 <= min(request.evidence) <= max(request.evidence) < self._database.num_chunks:
                raise ValueError(
                    f"evidence: expected chunks 0..{self._database.num_chunks - 1}, found {list(request.evidence)}"
                )
        if request.neighbors is not None:
            if request.evidence is not None:
                raise ValueError("neighbors: the request brings evidence already, expected one of the two")
            check_neighbors(request.neighbors, self._num_neighbors, self._neighbor_length, vocabulary)
        self._tickets += 1
        self._queue.append(self._begin(self._tickets, request))
        return self._tickets

    def cancel(self, ticket: int) -> bool:
        """Forget a request; nothing more comes of it. False if there is none of that ticket (any more)."""
        for sequence in self._queue:
            if sequence.ticket == ticket:
                self._queue.remove(sequence)
                return True
        for slot, sequence in enumerate(self._running):
            if sequence.ticket == ticket:
                self._release(slot)
                return True
        return False

    def step(self) -> list[Update]:
        """One token for every request that has, or now gets, a slot; requests that end give their slots back.

        An error of the model or the retriever leaves sequences half done: after it the engine raises RuntimeError.
        """
        if self._failed:
            raise RuntimeError("engine: a step failed, and what it decoded is lost; build another")
        self._failed = True
        updates = self._step()
        self._failed = False
        return updates

    def _step(self) -> list[Update]:
        running = len(self._running)
        begin = time.perf_counter()
        logits = self._continue()
        middle = time.perf_counter()
        logits += self._admit()
        if not logits:
            return []
        predictions = self._read(torch.stack(logits))
        end = time.perf_counter()
        self._share(self._running[:running], middle - begin)
        self._share(self._running[running:], end - middle)
        updates = [
            sequence.accept(prediction, self._tokenizer.eos_id)
            for sequence, prediction in zip(self._running, predictions, strict=True)
        ]
        # From the last slot on: each gap is filled by one that stays.
        settled = [self._settle(slot, updates[slot]) for slot in reversed(range(len(updates)))]
        return [update for update in reversed(settled) if update is not None]

    def run(self, requests: Iterable[EngineRequest]) -> list[Update]:
        """Decode all requests; their last updates, in their order."""
        tickets = [self.submit(request) for request in requests]
        last: dict[int, Update] = {}
        while self._running or self._queue:
            last.update({u.ticket: u for u in self.step() if u.finished is not None})
        return [last[ticket] for ticket in tickets]

    def _read(self, logits_AV: Tensor) -> list[Prediction]:
        plain = all(s.is_plain for s in self._running)
        return read_predictions(logits_AV, self._banned_ids, most_probable=plain)

    @staticmethod
    def _share(sequences: Sequence[DecodedSequence], seconds: float) -> None:
        for sequence in sequences:
            sequence.seconds += seconds / len(sequences)

    def _begin(self, ticket: int, request: EngineRequest) -> DecodedSequence:
        config = self._model.config
        sampler = Sampler(request.sampling, request.prompt, self._banned, config.vocab_size or 0)
        text = TextStream(self._tokenizer, request.until)
        return DecodedSequence(ticket, request, sampler, text, self._window, config.chunk_length)

    def _settle(self, slot: int, update: Update) -> Update | None:
        """Give back the slot of a request that ended; what may be seen of its update.

        A draft is seen when it stands. When it does not, the request begins again, before those that wait.
        """
        sequence = self._running[slot]
        draft = sequence.draft
        if draft is not None:
            draft.add(update, sequence.token_logprobs)
            if draft.stands is None:
                return None
            if not draft.stands:
                again = self._begin(sequence.ticket, dataclasses.replace(sequence.request, policy=draft.policy.then))
                again.seconds = sequence.seconds
                self._release(slot)
                self._queue.appendleft(again)
                return None
            sequence.draft, update = None, draft.released()
        if update.finished is not None:
            self._release(slot)
        return update

    def _release(self, slot: int) -> None:
        last = len(self._running) - 1
        if slot != last:
            self._state.copy(last, slot)
            self._running[slot] = self._running[last]
        self._state.clear(last)
        self._running.pop()

    def _continue(self) -> list[Tensor]:
        """Logits float32 [V] after the last token of every running sequence, which is given to the model now."""
        running = self._running
        if not running:
            return []
        retrieving = [s for s in running if self._retriever is not None and s.wants_retrieval()]
        self._retrieve([(s, len(s.tokens) - 1) for s in retrieving])
        for sequence in running:
            if sequence.renews_neighbors:
                assert sequence.request.neighbors is not None
                sequence.add_retrieval(len(sequence.tokens) - 1, sequence.request.neighbors, None)
                retrieving.append(sequence)
        full = [(slot, sequence) for slot, sequence in enumerate(running) if sequence.is_full]
        for _, sequence in full:
            sequence.drop()
        self._prefill([(slot, sequence, len(sequence.tokens) - 1) for slot, sequence in full])
        tokens = torch.tensor([s.tokens[-1] for s in running], device=self._device)
        if not retrieving:
            with inference(self._device, self._precision):
                return list(self._state.decode(tokens))
        now = [s in retrieving for s in running]
        neighbors, mask = self._neighbor_tokens(
            [s.retrievals[-1].neighbors if new else None for s, new in zip(running, now, strict=True)]
        )
        with inference(self._device, self._precision):
            return list(self._state.decode(tokens, neighbors, mask, torch.tensor(now)))

    def _admit(self) -> list[Tensor]:
        """Give free slots to waiting requests; logits float32 [V] after the prompt of each."""
        new: list[DecodedSequence] = []
        while self._queue and len(self._running) + len(new) < self._state.slots:
            new.append(self._queue.popleft())
        asked = [s for s in new if self._retriever is not None and s.retrieves_prompt]
        self._retrieve([(s, end) for s in asked for end in s.prompt_ends()])
        for sequence in new:
            if sequence.request.evidence and self._num_neighbors:
                given = np.array(sequence.request.evidence, dtype=np.int64)
                sequence.add_retrieval(len(sequence.tokens) - 1, given, None)
            elif sequence.request.neighbors:
                sequence.add_retrieval(len(sequence.tokens) - 1, sequence.request.neighbors, None)
        first = len(self._running)
        self._running += new
        return self._prefill([(first + i, sequence, len(sequence.tokens)) for i, sequence in enumerate(new)])

    def _prefill(self, places: list[tuple[int, DecodedSequence, int]]) -> list[Tensor]:
        """Fill slots with the windows of sequences up to a token each (slot, sequence, stop), those of similar length
        in one pass; logits float32 [V] of what follows each, in their order."""
        served = [[r for r in s.retrievals if s.dropped <= r.end < stop] for _, s, stop in places]
        lengths = [stop - sequence.dropped for _, sequence, stop in places]
        extra = [sum(map(self._neighbor_size, rows)) for rows in served]
        out: dict[int, Tensor] = {}
        for group in batch_by_length(lengths, extra):
            tokens = torch.zeros(len(group), max(lengths[i] for i in group), dtype=torch.int64)
            most = max(len(served[i]) for i in group)
            rows: list[Neighbors | None] = []
            ends = torch.full((len(group), most), -1)
            for row, i in enumerate(group):
                _, sequence, stop = places[i]
                tokens[row, : lengths[i]] = torch.tensor(sequence.tokens[sequence.dropped : stop])
                rows += [r.neighbors for r in served[i]] + [None] * (most - len(served[i]))
                ends[row, : len(served[i])] = torch.tensor([r.end - sequence.dropped for r in served[i]])
            neighbors = mask = None
            if most:
                neighbors, mask = (x.unflatten(0, ends.shape) for x in self._neighbor_tokens(rows))
            with inference(self._device, self._precision):
                logits = self._state.prefill_batch(
                    [places[i][0] for i in group],
                    tokens.to(self._device),
                    [lengths[i] for i in group],
                    neighbors,
                    mask,
                    ends.to(self._device) if most else None,
                )
            out.update(zip(group, logits, strict=True))
        return [out[i] for i in range(len(places))]

    def _neighbor_size(self, retrieval: Retrieval) -> int:
        """About how many tokens its neighbors have."""
        if isinstance(retrieval.neighbors, tuple):
            return sum(map(len, retrieval.neighbors))
        return len(retrieval.neighbors) * 2 * self._model.config.chunk_length

    def _retrieve(self, places: list[tuple[DecodedSequence, int]]) -> None:
        """Neighbors for the chunks that end at these positions of these sequences, searched together."""
        if not places:
            return
        assert self._retriever is not None
        queries = [sequence.query(end) for sequence, end in places]
        ids, distances = self._retriever.retrieve(queries, self._retrieved)
        for (sequence, end), query, found, distance in zip(places, queries, ids, distances, strict=True):
            if sequence.request.num_neighbors is not None:
                found[sequence.request.num_neighbors :] = -1
            neighbors = describe_neighbors(self._retriever.database, found, distance)
            sequence.add_retrieval(end, found, ChunkEvidence(end + 1 - len(query), end + 1, neighbors))

    def _neighbor_tokens(self, rows: Sequence[Neighbors | None]) -> tuple[Tensor, Tensor]:
        """Neighbor tokens int64 [rows, K, R] and mask bool."""
        tokens, mask = lay_out_neighbors(rows, self._num_neighbors, self._database, self._tokenizer.pad_id)
        return tokens.to(self._device), mask.to(self._device)
