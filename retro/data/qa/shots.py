"""Demonstrations: questions of the training split that stand before the one that is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np

from retro.data.qa.record import PreparedQuestion, wording


class ShotPool:
    """The questions that demonstrations are drawn from."""

    def __init__(self, train: Sequence[PreparedQuestion]) -> None:
        self._train = train
        groups: dict[str, list[PreparedQuestion]] = {}
        for prepared in train:
            groups.setdefault(prepared.question.relation, []).append(prepared)
        self._groups = dict(sorted(groups.items()))

    def choose(self, asked: PreparedQuestion, number: int, seed: int = 0) -> tuple[PreparedQuestion, ...]:
        """At most `number` demonstrations, a function of the pool, the question's id and the seed.

        A question with a relation gets one of each other relation in a drawn order, then a second one of each and so on
        (Mallen et al. 2023, section 4.2, with 15 for 16 relations); any other question gets questions drawn from all.
        Never a question with the same id or wording, in either case.
        """
        relation = asked.question.relation
        others = [group for name, group in self._groups.items() if name and name != relation] if relation else []
        groups: Sequence[Sequence[PreparedQuestion]] = others or [self._train]
        digest = hashlib.sha256(f"{seed}\n{asked.question.id}".encode()).digest()
        draws = _draws(int.from_bytes(digest[:16], "little"))
        order = sorted(range(len(groups)), key=[next(draws) for _ in groups].__getitem__)
        taken: list[PreparedQuestion] = []
        ids, wordings = {asked.question.id}, {wording(asked.question.question)}
        most = sum(map(len, groups))
        # A few draws may repeat what is there already; a pool that is too small gives fewer.
        for attempt in range(4 * most + 4 * len(groups)):
            if len(taken) >= number:
                break
            group = groups[order[attempt % len(groups)]]
            drawn = group[next(draws) % len(group)]
            words = wording(drawn.question.question)
            if drawn.question.id not in ids and words not in wordings:
                ids.add(drawn.question.id)
                wordings.add(words)
                taken.append(drawn)
        return tuple(taken)


def choose_shots(
    train: Sequence[PreparedQuestion], asked: PreparedQuestion, number: int, seed: int = 0
) -> tuple[PreparedQuestion, ...]:
    """`ShotPool.choose` for a single question; for many make the pool once."""
    return ShotPool(train).choose(asked, number, seed)


def _draws(key: int) -> Iterator[int]:
    generator = np.random.Philox(key=key)
    while True:
        yield from generator.random_raw(64).tolist()
