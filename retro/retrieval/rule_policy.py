"""A fitted rule (policy.json) as a retrieval policy: one decision per query, whether to retrieve for it at all."""

from __future__ import annotations

import dataclasses
import math

from retro.artifacts.retrieval_rule import ConfidenceRule, PopularityRule, RetrievalRule
from retro.config.errors import ConfigError
from retro.retrieval.policy import Every, Moment, Never, RetrievalPolicy


@dataclasses.dataclass(frozen=True)
class IfUnsure:
    """Answer without retrieval first; if the model was less sure of that than the rule wants, begin again with `then`.

    The engine holds the first answer back until it is decided, after rule.tokens new tokens or its end. What comes out
    is exactly the text without retrieval, or exactly that of `then`.
    """

    rule: ConfidenceRule
    then: RetrievalPolicy = dataclasses.field(default_factory=Every)
    prompt: bool = False

    def wants(self, moment: Moment) -> bool:
        """False: an answer that stands retrieves nothing."""
        return False


def rule_policy(
    rule: RetrievalRule,
    relation: str | None = None,
    popularity: float | None = None,
    then: RetrievalPolicy | None = None,
) -> RetrievalPolicy:
    """The policy of one query: `then` (None = at the end of each chunk) where the rule retrieves, Never where not.

    relation, popularity: of the query's subject, monthly page views, None = unknown. Raises ConfigError if they are
    given to a rule that does not read them, or no number of page views.
    """
    then = Every() if then is None else then
    if isinstance(rule, PopularityRule):
        if popularity is not None and not 0 <= popularity < math.inf:
            raise ConfigError(f"popularity: expected monthly page views, 0 or more, found {popularity}")
        return then if rule.retrieves(relation or "", popularity) else Never()
    for name, value in (("relation", relation), ("popularity", popularity)):
        if value is not None:
            raise ConfigError(f"{name}: the policy decides by confidence and does not read it; remove it")
    if rule.fixed is not None:
        return then if rule.fixed else Never()
    return IfUnsure(rule, then)
