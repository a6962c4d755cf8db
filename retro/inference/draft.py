"""An answer without retrieval that is held back until it is known whether it stands (retro.retrieval.rule_policy)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from retro.inference.requests import Update
from retro.retrieval.rule_policy import IfUnsure


class Draft:
    """The updates of one request while they are held. `stands`: None = not decided yet."""

    def __init__(self, policy: IfUnsure) -> None:
        self.policy = policy
        self.stands: bool | None = None
        self._held: list[Update] = []

    def add(self, update: Update, logprobs: Sequence[float]) -> None:
        """One more update; logprobs: natural, of all the tokens so far, the end-of-text token included."""
        self._held.append(update)
        if update.finished is not None or len(logprobs) >= self.policy.rule.tokens:
            self.stands = not self.policy.rule.retrieves(logprobs)

    def released(self) -> Update:
        """All that was held, as one update, once it stands."""
        last = self._held[-1]
        return dataclasses.replace(
            last,
            tokens=tuple(token for update in self._held for token in update.tokens),
            text="".join(update.text for update in self._held),
            logprobs=tuple(found for update in self._held for found in update.logprobs),
        )
