"""Spellings of retrieval policies."""

import pytest

from retro.config.errors import ConfigError
from retro.retrieval.policy import Every, Never, Unsure, parse_policy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("on", Every()),
        ("always", Every()),
        ("off", Never()),
        ("never", Never()),
        ("every:1", Every(1)),
        ("every:64", Every(64)),
        ("adaptive:0.4", Unsure(0.4)),
        ("adaptive:1", Unsure(1.0)),
    ],
)
def test_spellings(text, policy):
    assert parse_policy(text) == policy


@pytest.mark.parametrize(
    "text",
    ["", "On", "every", "every:", "every:0", "every:-1", "every:1.5", "every:x", "every:²", "on:1", "off:", "adaptive",
     "adaptive:", "adaptive:0", "adaptive:1.1", "adaptive:nan", "adaptive:inf", "sometimes"],
)  # fmt: skip
def test_other_spellings_are_refused(text):
    with pytest.raises(ConfigError, match="retrieve: expected on, off, every:TOKENS") as caught:
        parse_policy(text)
    assert "\n" not in str(caught.value)


def test_steps_beyond_the_chunk_length_are_refused():
    assert parse_policy("every:8", 8) == Every(8)
    with pytest.raises(ConfigError, match="expected every:1 to every:8"):
        parse_policy("every:9", 8)
