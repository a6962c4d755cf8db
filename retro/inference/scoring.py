"""Log-probabilities of many texts: pieces of similar length go through the model together, equal ones once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from retro.inference.given_neighbors import lay_out_neighbors
from retro.inference.language_model import Score
from retro.inference.precision import inference
from retro.inference.prompt_batches import batch_by_length
from retro.inference.scored_piece import ScoredPiece

if TYPE_CHECKING:
    from retro.model import RetroModel
    from retro.retrieval.retriever import Retriever

#: Most logits that are held at once.
_MOST_LOGITS = 2**25


class Scorer:
    """Scores pieces, each complete chunk of which retrieves.

    retriever: None = nothing is retrieved; num_neighbors K; pad_id: stands where nothing is read; batch: pieces that go
    through the model together.
    """

    def __init__(
        self,
        model: RetroModel,
        retriever: Retriever | None,
        num_neighbors: int,
        pad_id: int,
        precision: Literal["fp32", "bf16"],
        batch: int,
    ) -> None:
        self._model, self._retriever, self._num_neighbors = model, retriever, num_neighbors
        self._pad_id, self._precision, self._batch = pad_id, precision, batch
        self._device = model.embedding.weight.device
        self._chunk = model.config.chunk_length

    def score(self, texts: Sequence[Sequence[ScoredPiece]]) -> list[Score]:
        """Of each text all its pieces together; one without pieces has the probability 1."""
        # Candidates of one token differ in nothing that is read: what is read is computed once.
        inputs: dict[tuple[tuple[int, ...], int], list[ScoredPiece]] = {}
        for piece in (piece for text in texts for piece in text):
            inputs.setdefault((piece.tokens, piece.first), []).append(piece)
        rows = list(inputs.values())
        lengths = [len(same[0].tokens) for same in rows]
        chunks = [len(same[0].chunk_ends(self._chunk)) if self._retriever is not None else 0 for same in rows]
        extra = [number * self._num_neighbors * 2 * self._chunk for number in chunks]
        found: dict[ScoredPiece, tuple[list[float], bool]] = {}
        for group in batch_by_length(lengths, extra, rows=self._batch):
            found.update(self._score_rows([rows[i] for i in group]))
        return [_join([found[piece] for piece in text]) for text in texts]

    def _score_rows(self, rows: list[list[ScoredPiece]]) -> dict[ScoredPiece, tuple[list[float], bool]]:
        """(log-probabilities, whether all are the most probable) of pieces; those of a row read the same tokens."""
        read = [same[0] for same in rows]
        longest = max(len(piece.tokens) for piece in read)
        tokens = np.full((len(rows), longest), self._pad_id, dtype=np.int64)
        for row, piece in enumerate(read):
            tokens[row, : len(piece.tokens)] = piece.tokens
        # Padding comes after all that is scored, where causal attention does not see it.
        neighbors, mask, ends = self._neighbors(read)
        pieces = [piece for same in rows for piece in same]
        sizes = [len(piece.targets) for piece in pieces]
        number = torch.tensor([row for row, same in enumerate(rows) for piece in same for _ in piece.targets])
        place = torch.tensor([piece.begin + i for piece in pieces for i in range(len(piece.targets))])
        targets = torch.tensor([token for piece in pieces for token in piece.targets], device=self._device)
        with inference(self._device, self._precision):
            given = torch.from_numpy(tokens).to(self._device)
            hidden = self._model.hidden_states(given, neighbors, mask, chunk_ends_BL=ends)
            picked = hidden[number.to(self._device), place.to(self._device)]
            logprobs, greedy = self._read(picked, targets)
        return {
            piece: (values.tolist(), bool(likeliest.all()))
            for piece, values, likeliest in zip(pieces, logprobs.split(sizes), greedy.split(sizes), strict=True)
        }

    def _read(self, hidden_PD: Tensor, targets_P: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities float32 [P] of targets after hidden states, and whether each is the most probable token."""
        step = max(1, _MOST_LOGITS // self._model.output_weight.shape[0])
        logprobs, greedy = [], []
        for hidden, targets in zip(hidden_PD.split(step), targets_P.split(step), strict=True):
            logits = F.linear(hidden, self._model.output_weight).float()
            logprobs.append(torch.log_softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0])
            greedy.append(logits.argmax(1) == targets)
        return torch.cat(logprobs).cpu(), torch.cat(greedy).cpu()

    def _neighbors(self, pieces: Sequence[ScoredPiece]) -> tuple[Tensor, Tensor, Tensor] | tuple[None, None, None]:
        """(neighbors [B, L, K, R], their mask, chunk_ends [B, L]) of the pieces' complete chunks, if there are any."""
        ends = [piece.chunk_ends(self._chunk) for piece in pieces]
        most = max(map(len, ends))
        if self._retriever is None or not most:
            return None, None, None
        # The candidates of one question have most chunks in common.
        queries: dict[tuple[int, ...], int] = {}
        asked = [
            [
                queries.setdefault(piece.tokens[max(0, end + 1 - self._chunk) : end + 1], len(queries))
                for end in of_piece
            ]
            for piece, of_piece in zip(pieces, ends, strict=True)
        ]
        ids, _ = self._retriever.retrieve([np.array(query, dtype=np.int64) for query in queries], self._num_neighbors)
        chunk_ends = torch.full((len(pieces), most), -1)
        rows: list[np.ndarray | None] = []
        for row, (of_piece, numbers) in enumerate(zip(ends, asked, strict=True)):
            chunk_ends[row, : len(of_piece)] = torch.tensor(list(of_piece), dtype=torch.int64)
            rows += [ids[number] for number in numbers] + [None] * (most - len(numbers))
        tokens, mask = lay_out_neighbors(rows, self._num_neighbors, self._retriever.database, self._pad_id)
        neighbors, mask = (x.unflatten(0, chunk_ends.shape).to(self._device) for x in (tokens, mask))
        return neighbors, mask, chunk_ends.to(self._device)


def _join(parts: Sequence[tuple[list[float], bool]]) -> Score:
    logprobs = [value for values, _ in parts for value in values]
    return Score(float(sum(logprobs)), tuple(logprobs), all(greedy for _, greedy in parts))
