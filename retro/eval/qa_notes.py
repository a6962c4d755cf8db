"""What a reader of scores must know and the scores do not say: that they are of questions the model was made with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from retro.data.qa.prepared import PreparedQuestions
from retro.data.qa.record import PreparedQuestion
from retro.eval.tasks.qa_arms import AdaptiveArm, EvaluatedArm


def evaluation_notes(
    prepared: PreparedQuestions,
    split: str,
    questions: Sequence[PreparedQuestion],
    arms: Sequence[EvaluatedArm],
    trained_on: Mapping[str, Any],
) -> Iterator[str]:
    """Lines about an evaluation of these questions of a split. trained_on: `Checkpoint.trained_on`.

    Known are the questions of the checkpoint's own run, not those of the runs that it began with.
    """
    for arm in arms:
        if isinstance(arm, AdaptiveArm) and arm.fitted_on(prepared.fingerprint, split):
            yield (
                f"{arm.name} was fitted on these questions, so its scores are not held out; those of `retro qa "
                "adaptive` are"
            )
    if trained_on.get("questions") == prepared.fingerprint:
        section = trained_on["config"]["qa"]
        if split == section["split"]:
            yield f"the model was trained on these questions (split {split}), so its scores are not held out"
        elif split == section["validation_split"]:
            yield (
                f"the run of this model validated on these questions (split {split}), by which its checkpoint may have "
                "been chosen; report scores of another split"
            )
    release = trained_on.get("release")
    known = any(question.seen is not None for question in questions)
    if known and prepared.release is not None and release not in (None, prepared.release):
        yield (
            f"seen and unseen are of the training text of the release {prepared.release} that the questions were "
            f"prepared with; the model was trained with {release}"
        )
