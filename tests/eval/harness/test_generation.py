"""Generation settings in the spellings of the harness's tasks."""

from __future__ import annotations

import pytest

from retro.config.errors import ConfigError
from retro.config.generation import SamplingConfig
from retro.config.harness import HarnessConfig
from retro.eval.harness.generation import GenerationSettings, read_generation


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, GenerationSettings(256, (), SamplingConfig(seed=3))),
        ({"until": "\n", "max_tokens": 5}, GenerationSettings(5, ("\n",), SamplingConfig(seed=3))),
        ({"until": ["a", "", "b"]}, GenerationSettings(256, ("a", "b"), SamplingConfig(seed=3))),
        ({"until": None, "max_gen_toks": 7.0, "max_tokens": 5}, GenerationSettings(7, (), SamplingConfig(seed=3))),
        ({"do_sample": False, "temperature": 0.7}, GenerationSettings(256, (), SamplingConfig(seed=3))),
        (
            {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.2},
            GenerationSettings(256, (), SamplingConfig(0.7, 5, 0.9, 3, 1.2)),
        ),
        (
            {"do_sample": True, "temperature": 1, "top_k": 0, "num_beams": 1},
            GenerationSettings(256, (), SamplingConfig(1.0, None, 1.0, 3)),
        ),
    ],
)
def test_settings(settings, expected):
    assert read_generation(settings, 256, seed=3) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 4}, "num_beams=4 is not offered"),
        ({"typical_p": 0.9}, "typical_p=0.9 is not offered"),
        ({"do_sample": True}, "expected a temperature above 0"),
        ({"do_sample": "yes"}, "expected true or false, found 'yes'"),
        ({"max_gen_toks": 0}, "expected 1 or more, found 0"),
        ({"max_gen_toks": 2.5}, "expected 1 or more, found 2.5"),
        ({"temperature": "hot"}, "temperature: expected a number, found 'hot'"),
        ({"until": [1]}, "until: expected texts"),
        ({"until": 5}, "until: expected texts, found 5"),
        ({"until": {"stop": 1}}, "until: expected texts"),
        ({"max_gen_toks": float("inf")}, "max_gen_toks: expected 1 or more, found inf"),
        ({"max_gen_toks": float("nan")}, "max_gen_toks: expected 1 or more, found nan"),
        ({"top_k": 2.5}, "top_k: expected a whole number, found 2.5"),
        ({"top_k": float("inf")}, "top_k: expected a whole number, found inf"),
        ({"temperature": -1}, "temperature: expected 0 or more, found -1.0"),
        ({"temperature": 1.0, "top_p": 2.0}, "top_p: expected above 0 and at most 1"),
    ],
)
def test_what_is_not_offered_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        read_generation(settings, 256, seed=0)


def test_the_batch():
    assert HarnessConfig("x").batch == 1 and HarnessConfig("x", batch_size=6).batch == 6
    assert HarnessConfig("x", batch_size="auto").batch == 32
    assert HarnessConfig("x", batch_size="auto", max_batch_size=9).batch == 9
    assert HarnessConfig("x", batch_size="auto", max_batch_size=90).batch == 32
