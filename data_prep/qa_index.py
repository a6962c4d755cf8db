"""Stage build_index for passages: BM25 over the words of a chunk with its surroundings and its document's title."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from data_prep.bm25_index import BM25IndexStage
from retro.config.prep_index import Bm25Config, IndexConfig
from retro.config.qa_prepare import QaBm25Config, QaPassagesConfig
from retro.retrieval.passages import PassageMaker, Window, surroundings
from retro.retrieval.terms import TermCounts, word_terms


class PassageIndexStage(BM25IndexStage):
    """Chunks -> index of kind bm25, read like any other: a row per chunk, whose text is that of the passage around it.

    A chunk of 32 tokens seldom names what its document is about; its title does, and what stands around it helps.
    """

    def __init__(self, config: QaBm25Config, passages: QaPassagesConfig, chunks: Path) -> None:
        bm25 = Bm25Config(
            terms="words",
            max_ngram=config.max_ngram,
            k1=config.k1,
            b=config.b,
            max_document_frequency=config.max_document_frequency,
            shard_chunks=config.shard_chunks,
        )
        super().__init__(IndexConfig(kind="bm25", bm25=bm25), chunks)
        self._title = config.title
        self._before = passages.before if config.before is None else config.before
        self._after = passages.after if config.after is None else config.after
        self.config["passage"] = {"title": self._title, "before": self._before, "after": self._after}

    @cached_property
    def _maker(self) -> PassageMaker:
        return PassageMaker(self._chunks, self._tokenizer, QaPassagesConfig(before=self._before, after=self._after))

    def block_terms(self, first: int, stop: int) -> TermCounts:
        """Terms of the words of chunks first..stop-1, each with its surroundings and title."""
        ids = np.arange(first, stop)
        return word_terms(self._texts(ids), self._bm25.max_ngram)

    def _texts(self, ids: np.ndarray) -> list[str]:
        # A removed chunk has no text, nor do its surroundings: they went with it.
        real = ids[~self._chunks.removed(ids)]
        windows = [
            Window(*surroundings(chunk, low, high, self._before, self._after), chunk, 0.0)
            for chunk, (low, high) in zip(real.tolist(), self._maker.bounds(real), strict=True)
        ]
        texts = dict(zip(real.tolist(), self._maker.texts(windows), strict=True))
        if self._title:
            documents = self._chunks.documents(real)
            for chunk, document in zip(real.tolist(), documents.tolist(), strict=True):
                title = self._chunks.tokens.document_record(document)["title"]
                if title:
                    texts[chunk] = " . ".join([title] * self._title + [texts[chunk]])
        return [texts.get(chunk, "") for chunk in ids.tolist()]
