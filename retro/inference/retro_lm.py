"""RetroLM: a trained model, its tokenizer and its retriever behind the LanguageModel protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from retro.artifacts.release import open_release
from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.data.chunk_store import ChunkStore, open_chunk_store
from retro.data.release_match import check_database
from retro.data.tokenizer import Tokenizer, open_tokenizer
from retro.inference.checkpoint import Checkpoint, open_checkpoint
from retro.inference.evidence import open_retriever
from retro.inference.generate import EvidenceRetriever, Step, Window, generate_tokens, inference, next_logits
from retro.inference.language_model import ChunkEvidence, Generated, GenerateRequest, Score, ScoreRequest

if TYPE_CHECKING:
    from retro.artifacts.release import Release
    from retro.config.evaluation import SamplingConfig
    from retro.data.batch import RetroBatch
    from retro.model import RetroModel
    from retro.retrieval.retriever import Retriever


class RetroLM:
    """Implements LanguageModel.

    window_length: most tokens that the model sees at once, more than one chunk; num_neighbors K; retriever: for live
    retrieval, None = none (requests that bring their evidence need `database` only); precision "bf16": matrix products
    in bfloat16; batch: requests that are decoded together where their layout is the same.
    A model without cross-attention is given no neighbors, whatever is set here.
    """

    def __init__(
        self,
        model: RetroModel,
        tokenizer: Tokenizer,
        *,
        window_length: int,
        num_neighbors: int = 0,
        retriever: Retriever | None = None,
        database: ChunkStore | None = None,
        precision: Literal["fp32", "bf16"] = "fp32",
        batch: int = 8,
        name: str = "",
    ) -> None:
        if tokenizer.vocab_size > (model.config.vocab_size or 0):
            raise ArtifactMismatchError(
                f"tokenizer: expected at most the model's {model.config.vocab_size} tokens, found "
                f"{tokenizer.vocab_size}"
            )
        self.model, self.tokenizer = model.eval(), tokenizer
        self.window_length, self.num_neighbors = window_length, num_neighbors
        self.database = retriever.database if retriever is not None else database
        if self.database is not None:
            check_chunk_length(model, self.database)
        self.precision, self.batch, self.name = precision, batch, name
        self.device = next(model.parameters()).device
        self.is_retro = model.config.is_retro
        self.retriever = retriever if self.is_retro else None
        self.evidence = (
            EvidenceRetriever(self.retriever, num_neighbors, tokenizer.pad_id) if self.retriever is not None else None
        )
        self._chunk = model.config.chunk_length
        # Special tokens that no text contains; the end of the text is a token like others. A tokenizer may use one id
        # for several of them. Ids beyond the tokenizer's (a padded vocabulary) mean nothing.
        specials = {tokenizer.bos_id, tokenizer.pad_id} - {tokenizer.eos_id}
        self._banned = sorted(specials) + list(range(tokenizer.vocab_size, model.config.vocab_size or 0))

    def identity(self) -> dict[str, Any]:
        """See LanguageModel."""
        return {
            "name": self.name,
            "tokenizer": self.tokenizer.fingerprint,
            "window_length": self.window_length,
            "num_neighbors": self.num_neighbors if self.retriever is not None else 0,
            "retriever": self.retriever.identity() if self.retriever is not None else None,
            "precision": self.precision,
        }

    def score_batch(self, batch: RetroBatch) -> np.ndarray:
        """See LanguageModel."""
        moved = batch.to_torch(self.device)
        with inference(self.device, self.precision):
            output = self.model(
                moved.tokens_BN,
                moved.neighbors_BLKR,
                moved.neighbor_mask_BLKR,
                targets_BN=moved.targets_BN,
                loss_mask_BN=moved.loss_mask_BN,
                first_chunk_length=self._chunk if moved.chunk_ends_BL is None else None,
                document_starts_BN=moved.document_starts_BN,
                chunk_ends_BL=moved.chunk_ends_BL,
            )
        losses = output.token_losses_BN.float().cpu().numpy()
        return np.where(batch.loss_mask_BN, -losses, np.float32(np.nan)).astype(np.float32)

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score | None]:
        """See LanguageModel. Retrieval as in generation: the context ends a chunk, the continuation begins one."""
        return [self._score_continuation(request) for request in requests]

    def _score_continuation(self, request: ScoreRequest) -> Score | None:
        context = [self.tokenizer.bos_id, *self.tokenizer.encode(request.context)]
        continuation = self.tokenizer.encode(request.continuation)
        if not continuation:
            return Score(0.0, (), True)
        window = Window(context, self._chunk, self.window_length)
        window.fit()
        logprobs: list[float] = []
        greedy = True
        done = 0
        while done < len(continuation):
            # As much as fits; the window then moves on by whole chunks.
            room = window.limit - len(window.tokens)
            begin = len(window.tokens)
            part = continuation[done : done + max(1, room)]
            for token in part:
                window.append(token)
            begin = len(window.tokens) - len(part)
            distribution = self._window_logprobs(window)[begin - 1 : begin - 1 + len(part)]
            ids = torch.tensor(part)
            logprobs += distribution.gather(1, ids[:, None])[:, 0].tolist()
            greedy &= bool((distribution.argmax(1) == ids).all())
            done += len(part)
        return Score(float(sum(logprobs)), tuple(logprobs), greedy)

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Score | None]:
        """See LanguageModel. A text is [bos] text [eos], cut into windows of whole chunks that do not overlap."""
        return [self._score_rolling(text) for text in texts]

    def _score_rolling(self, text: str) -> Score:
        tokens = [self.tokenizer.bos_id, *self.tokenizer.encode(text), self.tokenizer.eos_id]
        length = self.window_length // self._chunk * self._chunk
        logprobs: list[float] = []
        greedy = True
        for start in range(0, len(tokens) - 1, length):
            part = tokens[start : start + length]
            targets = torch.tensor(tokens[start + 1 : start + 1 + length])
            window = Window(part, self._chunk, max(length, self._chunk + 1))
            window.first = min(self._chunk, len(part))  # chunks are counted from the text's begin, as in training
            window.neighbors = [None] * (len(part) // self._chunk)
            distribution = self._window_logprobs(window)[: len(targets)]
            logprobs += distribution.gather(1, targets[:, None])[:, 0].tolist()
            greedy &= bool((distribution.argmax(1) == targets).all())
        return Score(float(sum(logprobs)), tuple(logprobs), greedy)

    def _window_logprobs(self, window: Window) -> torch.Tensor:
        """Natural log-probabilities float32 [N, V] of what follows each token of the window, on the CPU."""
        neighbors = mask = None
        if self.evidence is not None and window.neighbors:
            self.evidence.retrieve(window)
            neighbors, mask = self.evidence.neighbor_tokens(window, self.device)
        tokens = torch.tensor([window.tokens], device=self.device)
        with inference(self.device, self.precision):
            output = self.model(tokens, neighbors, mask, first_chunk_length=window.first)
        return torch.log_softmax(output.logits[0].float(), dim=-1).cpu()

    def generate_until(self, requests: Sequence[GenerateRequest]) -> list[Generated | None]:
        """See LanguageModel. Requests with given evidence are decoded together, the others one by one."""
        results: list[Generated | None] = [None] * len(requests)
        groups: dict[tuple[int, int], list[int]] = {}
        prompts = [self._prompt(request) for request in requests]
        for i, request in enumerate(requests):
            if request.evidence is None or request.sampling.temperature > 0:
                results[i] = self._generate(request, prompts[i])
            else:
                groups.setdefault((len(prompts[i]), request.max_new_tokens), []).append(i)
        for members in groups.values():
            for start in range(0, len(members), self.batch):
                part = members[start : start + self.batch]
                decoded = self._decode_greedily([requests[i] for i in part], [prompts[i] for i in part])
                for i, result in zip(part, decoded, strict=True):
                    results[i] = result
        return results

    def _prompt(self, request: GenerateRequest) -> tuple[int, ...]:
        if isinstance(request.prompt, str):
            return (self.tokenizer.bos_id, *self.tokenizer.encode(request.prompt))
        return request.prompt

    def stream(
        self, prompt: Sequence[int], max_new_tokens: int, sampling: SamplingConfig, retrieval: bool = True
    ) -> Iterator[Step | ChunkEvidence]:
        """New tokens as they come, at most `max_new_tokens`, the end-of-text token last if it is reached.

        Evidence comes as in `generate_tokens`.
        """
        produced = 0
        for item in generate_tokens(
            self.model,
            prompt,
            window_length=self.window_length,
            sampling=sampling,
            banned=self._banned,
            evidence=self.evidence if retrieval else None,
            precision=self.precision,
        ):
            yield item
            if isinstance(item, Step):
                produced += 1
                if item.token == self.tokenizer.eos_id or produced >= max_new_tokens:
                    return

    def _generate(self, request: GenerateRequest, prompt: tuple[int, ...]) -> Generated:
        if request.evidence:
            raise ConfigError("evidence: given evidence is decoded greedily; set temperature to 0")
        evidence: list[ChunkEvidence] = []
        tokens: list[int] = []
        stop = "length"
        retrieval = request.evidence is None
        for item in self.stream(prompt, request.max_new_tokens, request.sampling, retrieval):
            if isinstance(item, ChunkEvidence):
                evidence.append(item)
                continue
            if item.evidence is not None:
                evidence.append(item.evidence)
            if item.token == self.tokenizer.eos_id:
                stop = "end"
                break
            tokens.append(item.token)
            if request.until and _cut(self.tokenizer.decode(tokens), request.until)[1]:
                stop = "until"
                break
        text, _ = _cut(self.tokenizer.decode(tokens), request.until)
        return Generated(prompt, tuple(tokens), text, stop, tuple(evidence))

    def _decode_greedily(
        self, requests: Sequence[GenerateRequest], prompts: Sequence[tuple[int, ...]]
    ) -> list[Generated]:
        """Prompts of one length, each with the evidence it brings for its last chunk."""
        length, limit = len(prompts[0]), min(requests[0].max_new_tokens, self._chunk)
        first = (length - 1) % self._chunk + 1
        row = (length - first) // self._chunk
        neighbors = mask = None
        if self.is_retro and any(request.evidence for request in requests):
            if self.database is None:
                raise ConfigError("evidence: chunk ids need the database that they are in, found none")
            width = max(len(request.evidence or ()) for request in requests)
            ids = np.full((len(requests), row + 1, width), -1, dtype=np.int64)
            for i, request in enumerate(requests):
                given = request.evidence or ()
                ids[i, row, : len(given)] = given
            found, real = self.database.gather_neighbors(ids, self.tokenizer.pad_id)
            neighbors = torch.from_numpy(found).to(self.device, torch.int64)
            mask = torch.from_numpy(real).to(self.device)
        tokens = torch.tensor(prompts, device=self.device)
        eos = self.tokenizer.eos_id
        made = np.full((len(requests), 0), eos, dtype=np.int64)
        ended = np.zeros(len(requests), dtype=bool)
        banned = torch.tensor(self._banned, dtype=torch.int64)
        for _ in range(limit):
            logits = next_logits(self.model, tokens, neighbors, mask, first, self.precision)
            logits = logits.index_fill(1, banned, -torch.inf)
            new = np.where(ended, eos, logits.argmax(dim=1).numpy())
            made = np.concatenate([made, new[:, None]], axis=1)
            ended |= new == eos
            if ended.all():
                break
            tokens = torch.cat([tokens, torch.from_numpy(new)[:, None].to(self.device)], dim=1)
        results = []
        for request, prompt, new, end in zip(requests, prompts, made, ended, strict=True):
            kept = new[: int(np.argmax(new == eos))] if end else new
            text, found_stop = _cut(self.tokenizer.decode(kept.tolist()), request.until)
            stop = "until" if found_stop else "end" if end else "length"
            results.append(Generated(prompt, tuple(kept.tolist()), text, stop))
        return results


def open_language_model(
    checkpoint: str | Path | Checkpoint,
    *,
    release: str | Path | None = None,
    database: str | Path | None = None,
    num_neighbors: int | None = None,
    retrieval: bool = True,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    batch: int = 8,
    window_length: int | None = None,
) -> tuple[RetroLM, Release]:
    """A model with live retrieval from a run or checkpoint folder, and the release it works with.

    release: None = the run's; database: another release, whose database is retrieved from instead; num_neighbors,
    window_length: None = as trained; retrieval False: no retriever is opened.
    Raises ConfigError and ArtifactError subclasses.
    """
    opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
    found = open_release(opened.release_path(None if release is None else str(release)))
    tokenizer = open_tokenizer(found.tokenizer)
    opened.check_tokenizer(tokenizer.fingerprint, str(found.path))
    model = opened.load_model(resolve_device(device))
    other = None if database is None else open_release(database)
    if other is not None:
        if not (retrieval and model.config.is_retro):
            raise ConfigError("database: nothing is retrieved (a model without retrieval, or retrieval=off); remove it")
        check_database(found, other)
    retriever = open_retriever(found, device, other) if retrieval and model.config.is_retro else None
    lm = RetroLM(
        model,
        tokenizer,
        window_length=opened.setting("sequence_length", window_length),
        num_neighbors=opened.setting("num_neighbors", num_neighbors) if model.config.is_retro else 0,
        retriever=retriever,
        database=open_chunk_store((other or found).database_chunks) if model.config.is_retro else None,
        precision=precision,
        batch=batch,
        name=opened.name,
    )
    return lm, found


def check_chunk_length(model: RetroModel, chunks: ChunkStore) -> None:
    """Raise ArtifactMismatchError if a RETRO counts in other chunks: its neighbors would serve the wrong positions."""
    expected = model.config.chunk_length
    if model.config.is_retro and chunks.chunk_length != expected:
        raise ArtifactMismatchError(
            f"{chunks.folder}: expected chunks of {expected} tokens, as the model was trained with, found "
            f"{chunks.chunk_length}; use the release of that run, or one prepared with chunk.chunk_length={expected}"
        )


def resolve_device(device: str) -> str:
    """ "auto" is cuda where there is one. Raises ConfigError for a device that torch does not know or have."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {device!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _cut(text: str, until: Sequence[str]) -> tuple[str, bool]:
    """The text before the first of `until`, and whether there is one."""
    places = [place for stop in until if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)
