"""The stages of `retro qa prepare`, in order, and questions.json for what they made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_prep.build_index import build_index_stage
from data_prep.embed import EmbedStage, FitEmbedderStage
from data_prep.execution.crew import Crew
from data_prep.execution.devices import usable_cores
from data_prep.execution.ray_session import disconnect
from data_prep.qa_index import PassageIndexStage
from data_prep.qa_passages import QaPassagesStage
from data_prep.qa_questions import QaQuestionsStage, release_questions
from data_prep.runner import Executor, run_stage
from data_prep.stage import Stage
from data_prep.train_index import TrainIndexStage
from retro.artifacts.atomic import remove_dead_temporaries
from retro.artifacts.manifest import open_manifest
from retro.artifacts.release import Release, open_release
from retro.config.errors import ConfigError, RetroError
from retro.config.prep_index import IndexConfig
from retro.config.qa_prepare import QaPrepareConfig
from retro.data.qa.pointer import POINTER, write_pointer
from retro.data.qa.task import open_task

# The split of a release that language models are trained on.
_TRAINING = "train"


@dataclass(frozen=True)
class QaStep:
    """One stage; `build` is called with the folders of the steps before it, by name."""

    name: str
    build: Callable[[dict[str, Path]], Stage]


class QaPipeline:
    """The steps of one configuration. Raises ConfigError and ArtifactError for a task, or a release, that does not
    have what the configuration asks for."""

    def __init__(self, config: QaPrepareConfig) -> None:
        self.config, self.root = config, Path(config.root)

    @cached_property
    def _release(self) -> Release | None:
        return None if self.config.release is None else open_release(self.config.release)

    def steps(self) -> list[QaStep]:
        """The steps in order."""
        config, retrieval = self.config, self.config.retrieval
        found = [QaStep("questions", lambda done: self._questions())]
        if retrieval.method == "given":
            found.append(QaStep("passages", self._passages))
            return found
        assert self._release is not None
        database = self._release.database_chunks
        if retrieval.builds_bm25:
            found.append(QaStep("bm25", lambda done: PassageIndexStage(retrieval.bm25, config.passages, database)))
        if retrieval.embed is not None:
            embed = retrieval.embed
            index = IndexConfig(kind="vectors", vectors=retrieval.vectors)
            found.append(QaStep("embedder", lambda done: FitEmbedderStage(embed, database)))
            found.append(QaStep("embed", lambda done: EmbedStage(embed, database, done["embedder"])))
            if retrieval.vectors.factory != "exact":
                found.append(QaStep("train_index", lambda done: TrainIndexStage(index, done["embed"])))
            found.append(
                QaStep("dense", lambda done: build_index_stage(index, database, done["embed"], done.get("train_index")))
            )
        found.append(QaStep("passages", self._passages))
        return found

    def _questions(self) -> Stage:
        config = self.config
        folder = None
        if config.source.release is not None:
            if config.release is None:
                raise ConfigError("release: source.release names questions of one; expected its path, found none")
            folder = release_questions(Path(config.release), config.source.release)
        return QaQuestionsStage(
            open_task(config.task), config.source, folder, cache=self.root / ".question-hashes.jsonl"
        )

    def _passages(self, done: dict[str, Path]) -> Stage:
        config, release = self.config, self._release
        inputs = {"questions": done["questions"]}
        searched = None
        if config.retrieval.method != "given":
            assert release is not None
            searched = release.fingerprint
            inputs["database"] = release.database_chunks
            if _TRAINING in release.splits:
                inputs["training"] = release.splits[_TRAINING].tokens
            if config.retrieval.method == "release":
                inputs["searcher"] = _searcher(release)
            if config.retrieval.builds_bm25:
                inputs["bm25"] = done["bm25"]
            if config.retrieval.uses_dense:
                inputs["dense"] = done["dense"] if config.retrieval.embed is not None else _vectors(release)
        return QaPassagesStage(
            config.retrieval,
            config.passages,
            inputs,
            shard_questions=config.shard_questions,
            release=searched,
            device=config.device,
        )

    def run(self, progress: bool = True, rank: int = 0, world: int = 1) -> Path:
        """Carry out every step that is not finished and write questions.json; returns its path.

        Any number of processes may run one configuration in one root at the same time: they share the shards. Ended
        early in any way and started again it ends in the same bytes.
        """
        config = self.config
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"root: {self.root} cannot be made ({error.strerror}); choose another folder") from None
        remove_dead_temporaries(self.root)
        done: dict[str, Path] = {}
        try:
            with Crew() as crew:
                workers = config.workers or (0 if config.executor.type == "ray" else usable_cores())
                executor = Executor(workers, config.executor, rank, world, crew)
                for step in self.steps():
                    done[step.name] = run_stage(step.build(done), self.root, executor, progress)
        finally:
            disconnect()
        path = self.root / POINTER
        try:
            write_pointer(path, done["passages"])
        except OSError as error:
            raise RetroError(
                f"{path}: cannot be written ({error.strerror or error}); free the cause and run the command again; all "
                "stages are finished"
            ) from None
        return path


def _searcher(release: Release) -> Path:
    if release.searcher is None:
        raise ConfigError(
            f"retrieval.method: release: {release.path} was prepared without a searcher; choose bm25, or prepare it "
            "with one"
        )
    return release.searcher


def _vectors(release: Release) -> Path:
    """The release's searcher, if it is one over vectors."""
    if release.searcher is None or open_manifest(release.searcher).config.get("kind") != "vectors":
        raise ConfigError(
            f"retrieval.embed: {release.path} has no index over vectors; add retrieval.embed (kind: lexical or "
            "transformer), and one is made"
        )
    return release.searcher
