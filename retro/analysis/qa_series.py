"""Which arms of which evaluations stand side by side: grouping, the reference, names and colours."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence

from retro.analysis.qa_records import QaAnswers, QaRow
from retro.analysis.runs import Run
from retro.analysis.series import run_titles

CLOSED_BOOK = "closed_book"
_ADAPTIVE = "adaptive:"  # and the file of a policy that decides for every question
_ARM_WORDS = {CLOSED_BOOK: "closed book", "rag": "RAG", "retro": "RETRO", "retro++": "RETRO++"}
_MODIFIER_WORDS = {"oracle": "oracle evidence", "random": "random evidence", "gate_0": "gate 0"}
# What an arm's line looks like where that colour is still free: random evidence is a control, like shuffled neighbors.
_ROLES = {CLOSED_BOOK: "gpt", "retro": "on", "retro/gate_0": "off", "retro/random": "shuffled"}
_DEVELOPMENT = {"dev": 1, "valid": 1, "validation": 1, "train": 2}
_MORE_ROLES = ("x1", "x2", "x3", "x4", "on", "off", "shuffled", "gpt")


@dataclasses.dataclass(frozen=True)
class QaSeries:
    """One arm of one evaluation of one run. evaluation: name of the folder; passages: most of a question."""

    key: str
    run: str
    evaluation: str
    arm: str
    label: str
    role: str
    passages: int
    shots: int


@dataclasses.dataclass(frozen=True)
class QaArm:
    """A series with its rows (question id -> row)."""

    series: QaSeries
    answers: QaAnswers
    rows: Mapping[str, QaRow]


@dataclasses.dataclass(frozen=True)
class QaGroup:
    """Evaluations of one task and split that can be compared. arms: one per run, arm and setting, the reference
    first; sweeps: key of an arm -> the same arm by number of passages, where there are several."""

    answers: tuple[QaAnswers, ...]
    arms: tuple[QaArm, ...]
    sweeps: Mapping[str, Mapping[int, QaArm]]

    @property
    def reference(self) -> QaArm:
        """What the others are compared with."""
        return self.arms[0]


def arm_words(arm: str) -> str:
    """'retro/random' -> 'RETRO, random evidence'."""
    if arm.startswith(_ADAPTIVE):
        return f"adaptive ({arm.removeprefix(_ADAPTIVE).rpartition('/')[2]})"
    base, _, modifier = arm.partition("/")
    words = _ARM_WORDS.get(base, base)
    return f"{words}, {_MODIFIER_WORDS.get(modifier, modifier)}" if modifier else words


def reads_retrieved(arm: str) -> bool:
    """Whether the arm is always given what the retriever found: not closed book, no control, no oracle, no policy."""
    return arm != CLOSED_BOOK and not arm.startswith(_ADAPTIVE) and not arm.endswith(("/oracle", "/random", "/gate_0"))


def qa_groups(runs: Sequence[Run], answers: Sequence[QaAnswers]) -> list[QaGroup]:
    """One group per (task, version, split, primary metric): held-out splits before those for development, and among
    them those with the smallest share of questions about documents of the training text first."""
    by_task: dict[tuple, list[QaAnswers]] = {}
    for item in answers:
        key = (item.task, item.definition["version"], item.split, item.metrics[0])
        by_task.setdefault(key, []).append(item)
    groups = [_group(runs, by_task[key]) for key in sorted(by_task)]
    return sorted(groups, key=lambda group: (_DEVELOPMENT.get(group.answers[0].split, 0), _share_seen(group)))


def _share_seen(group: QaGroup) -> float:
    rows = group.reference.rows.values()
    return sum(row.row.get("seen") is True for row in rows) / max(len(rows), 1)


def _group(runs: Sequence[Run], answers: Sequence[QaAnswers]) -> QaGroup:
    """Arms that differ in the number of passages alone are a sweep, of which one stands for all."""
    settings: dict[tuple[str, str, str], list[QaAnswers]] = {}
    for item in answers:
        for arm in item.arms:
            settings.setdefault((item.run.name, arm, _settings(item)), []).append(item)
    chosen = [(max(items, key=_standing), arm, items) for (_, arm, _), items in settings.items()]
    order = {run.name: i for i, run in enumerate(runs)}
    chosen.sort(key=lambda c: (order[c[0].run.name], c[0].evaluation.name, _place(c[1])))
    reference = _reference([(item, arm) for item, arm, _ in chosen])
    chosen.insert(0, chosen.pop(reference))
    labels = _labels(runs, [(item, arm) for item, arm, _ in chosen])
    roles = _roles([arm for _, arm, _ in chosen])
    arms, sweeps = [], {}
    for (item, arm, items), label, role in zip(chosen, labels, roles, strict=True):
        made = _arm(item, arm, label, role)
        arms.append(made)
        by_passages = {o.passages: _arm(o, arm, label, role) for o in sorted(items, key=_standing)}
        if len(by_passages) > 1:
            sweeps[made.series.key] = dict(sorted(by_passages.items()))
    return QaGroup(tuple(answers), tuple(arms), sweeps)


def _arm(item: QaAnswers, arm: str, label: str, role: str) -> QaArm:
    name = item.evaluation.name
    series = QaSeries(f"{item.run.name}/{name}/{arm}", item.run.name, name, arm, label, role, item.passages, item.shots)
    return QaArm(series, item, item.arms[arm])


def _place(arm: str) -> tuple[int, int, str]:
    """Closed book, RAG, RETRO, RETRO++, each with its controls after it, then policies: results.json has no order."""
    base, _, modifier = arm.partition("/")
    bases, modifiers = list(_ARM_WORDS), ["", *_MODIFIER_WORDS]
    return (
        bases.index(base) if base in bases else len(bases),
        modifiers.index(modifier) if modifier in modifiers else len(modifiers),
        arm,
    )


def _settings(item: QaAnswers) -> str:
    """Everything but the number of passages."""
    fields = [item.shots, item.layout, item.prepared, item.evaluation.results.get("precision")]
    return json.dumps(fields, sort_keys=True)


def _standing(item: QaAnswers) -> tuple:
    """Which of a sweep is shown beside the other arms: the most questions, then arms, then passages."""
    return item.num_questions, len(item.arms), item.passages, item.evaluation.name


def _reference(arms: Sequence[tuple[QaAnswers, str]]) -> int:
    """Closed book of a GPT, else any closed book, else the first."""
    closed = [i for i, (_, arm) in enumerate(arms) if arm == CLOSED_BOOK]
    return next((i for i in closed if arms[i][0].run.model == "gpt"), closed[0] if closed else 0)


def _labels(runs: Sequence[Run], arms: Sequence[tuple[QaAnswers, str]]) -> list[str]:
    """The arm; with the run, the shots, the folder where the arm alone does not tell."""
    titles = run_titles(runs)
    parts = [
        (arm_words(arm), titles[item.run.name], f"{item.shots} shots", f"eval/{item.evaluation.name}")
        for item, arm in arms
    ]
    labels = [part[0] for part in parts]
    for depth in range(1, 4):
        crowded = {label for label in labels if labels.count(label) > 1}
        for label in crowded:
            places = [i for i, other in enumerate(labels) if other == label]
            if len({parts[i][depth] for i in places}) > 1:
                for i in places:
                    labels[i] = f"{label}, {parts[i][depth]}"
    return labels


def _roles(arms: Sequence[str]) -> list[str]:
    """A colour for each, the usual one where it is free."""
    roles: list[str] = []
    usual = [_ROLES.get(arm) for arm in arms]
    for i, role in enumerate(usual):
        if role is None or role in roles:
            reserved = {other for other in usual[i + 1 :] if other}
            free = [r for r in _MORE_ROLES if r not in roles and r not in reserved]
            role = free[0] if free else _MORE_ROLES[i % len(_MORE_ROLES)]
        roles.append(role)
    return roles
