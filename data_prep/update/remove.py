"""`retro prep remove`: a release without some of its documents, so that nothing can return them any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from data_prep.build_index import remove_rows_stage
from data_prep.stage import Stage
from data_prep.update.output import claim_output
from data_prep.update.redact_chunks import (
    RedactChunksStage,
    RedactEmbeddingsStage,
    RedactNeighborsStage,
    RedactQuestionSequencesStage,
    RedactQuestionsStage,
)
from data_prep.update.redact_text import RedactDocumentsStage, RedactTokensStage
from data_prep.update.removal import Removal, find_removal, removal_digest
from retro.artifacts.manifest import input_path, open_manifest
from retro.artifacts.release import Release, Split, open_release, write_release
from retro.data.question_dataset import QUESTION_SEQUENCES_KIND

#: Carries a stage out and returns its folder.
Run = Callable[[Stage], Path]


def remove_documents(
    release: str | Path, ids: Iterable[str], root: str | Path, run: Run, ignore_missing: bool = False
) -> tuple[Path, Removal]:
    """Write `root`/release.json: the release without the documents `ids`; returns its path and what was removed.

    Documents and chunks keep their numbers. The tokens of removed documents are padding, their records have no name,
    their chunks no tokens and their vectors are zero; they are in no index, no neighbor table and no question. What the
    documents have contributed to the tokenizer (which lists the keys of its sample), to the counts of a lexical
    embedder and to the centroids of an index stays.
    Raises ConfigError, naming them, for ids that the release does not have (unless they are to be ignored).
    """
    old = open_release(release)
    removal = find_removal(old, ids, ignore_missing)
    places = [removal.documents[name] for name in sorted(removal.documents)]
    places += [removal.tokens[folder] for folder in sorted(removal.tokens)]
    request = {"operation": "remove", "release": old.fingerprint, "removed": removal_digest(*places)}
    path = claim_output(Path(root), request)
    new = _Redacted(old, removal, run)
    searcher = None if old.searcher is None else new.index(old.searcher)
    splits = {
        name: Split(new.tokens(s.tokens), new.chunks(s.chunks), None if s.neighbors is None else new.table(s.neighbors))
        for name, s in sorted(old.splits.items())
    }
    write_release(
        path,
        tokenizer=old.tokenizer,
        documents=new.documents(),
        database_tokens=new.tokens(old.database_tokens),
        database_chunks=new.chunks(old.database_chunks),
        searcher=searcher,
        splits=splits,
        questions={name: new.questions(folder) for name, folder in sorted(old.questions.items())},
    )
    return path, removal


class _Redacted:
    """The new folder of each artifact of a release: the old one where nothing of it changes."""

    def __init__(self, old: Release, removal: Removal, run: Run) -> None:
        self._old, self._removal, self._run = old, removal, run
        self._done: dict[Path, Path] = {}

    def _once(self, folder: Path, build: Callable[[], Stage | None]) -> Path:
        """Artifacts that several others are made from are made once."""
        if folder not in self._done:
            stage = build()
            self._done[folder] = folder if stage is None else self._run(stage)
        return self._done[folder]

    def documents(self) -> Path:
        """The documents artifact."""
        folder = self._old.documents
        return self._once(
            folder, lambda: RedactDocumentsStage(folder, self._removal) if self._removal.documents else None
        )

    def tokens(self, folder: Path) -> Path:
        """A token store."""
        changed = folder in self._removal.tokens
        return self._once(folder, lambda: RedactTokensStage(folder, self._removal) if changed else None)

    def chunks(self, folder: Path) -> Path:
        """A chunk store."""

        def build() -> Stage | None:
            store = self._input(folder, "tokens")
            if store not in self._removal.tokens:
                return None
            return RedactChunksStage(folder, self.tokens(store), self._removal.tokens[store])

        return self._once(folder, build)

    def embeddings(self, folder: Path) -> Path:
        """Vectors of a chunk store."""

        def build() -> Stage | None:
            before = self._input(folder, "chunks")
            chunks = self.chunks(before)
            return None if chunks == before else RedactEmbeddingsStage(folder, chunks)

        return self._once(folder, build)

    def index(self, folder: Path) -> Path:
        """An index, over chunks or over vectors."""

        def build() -> Stage | None:
            over = "embeddings" if "embeddings" in open_manifest(folder).inputs else "chunks"
            before = self._input(folder, over)
            source = self.embeddings(before) if over == "embeddings" else self.chunks(before)
            return None if source == before else remove_rows_stage(folder, source)

        return self._once(folder, build)

    def table(self, folder: Path) -> Path:
        """A neighbor table."""

        def build() -> Stage | None:
            queries, database = (self._input(folder, name) for name in ("queries", "database"))
            if self.chunks(queries) == queries and self.chunks(database) == database:
                return None
            searcher, reranker = self._searched(folder)
            return RedactNeighborsStage(folder, self.chunks(queries), self.chunks(database), searcher, reranker)

        return self._once(folder, build)

    def questions(self, folder: Path) -> Path:
        """Questions, or sequences of them with neighbors."""

        def build() -> Stage | None:
            if open_manifest(folder).kind != QUESTION_SEQUENCES_KIND:
                stage = RedactQuestionsStage(folder, self._removal.ids)
                return stage if stage.changes else None
            questions, database = (self._input(folder, name) for name in ("questions", "database"))
            if self.questions(questions) == questions and self.chunks(database) == database:
                return None
            searcher, reranker = self._searched(folder)
            named = "tokenizer" in open_manifest(folder).inputs
            return RedactQuestionSequencesStage(
                folder,
                self._removal.ids,
                questions=self.questions(questions),
                database=self.chunks(database),
                searcher=searcher,
                reranker=reranker,
                tokenizer=self._input(folder, "tokenizer") if named else None,
            )

        return self._once(folder, build)

    def _searched(self, folder: Path) -> tuple[Path, Path | None]:
        reranked = "reranker" in open_manifest(folder).inputs
        return self.index(self._input(folder, "searcher")), (
            self.index(self._input(folder, "reranker")) if reranked else None
        )

    @staticmethod
    def _input(folder: Path, name: str) -> Path:
        return input_path(folder, open_manifest(folder), name)
