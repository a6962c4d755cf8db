"""Draws from a distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.config.generation import SamplingConfig
from retro.inference.sampling import Sampler, likely_ids, probability_and_entropy, token_logprob

LOGITS = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1]))


def draws(sampling, count=200, banned=(), prompt=(), logits=LOGITS):
    sampler = Sampler(sampling, prompt, banned, len(logits))
    return [sampler.draw(logits) for _ in range(count)]


def test_sampling():
    before = LOGITS.clone()
    assert set(draws(SamplingConfig())) == {1} and set(draws(SamplingConfig(), banned=[1])) == {2}
    assert set(draws(SamplingConfig(temperature=1.0))) == {0, 1, 2, 3}
    assert set(draws(SamplingConfig(temperature=1.0, top_k=2))) == {1, 2}
    assert set(draws(SamplingConfig(temperature=1.0, top_k=1))) == {1}
    # 0.5 is less than 0.6, with 0.3 it is more: two tokens.
    assert set(draws(SamplingConfig(temperature=1.0, top_p=0.6))) == {1, 2}
    assert set(draws(SamplingConfig(temperature=1.0, top_p=0.4))) == {1}
    assert set(draws(SamplingConfig(temperature=1.0), banned=[1, 2])) == {0, 3}
    hot = draws(SamplingConfig(temperature=3.0), 4000)
    assert abs(hot.count(1) / 4000 - float(torch.softmax(LOGITS / 3, 0)[1])) < 0.03
    assert torch.equal(LOGITS, before)  # the caller's logits stay


def naive_ids(logits, weights, top_k, top_p):
    """Everything sorted, the lowest ids first among equals; then counted from the front."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:top_k]
    total, before, kept = sum(weights[i] for i in order), 0.0, []
    for i in order:
        if before >= top_p * total:
            break
        kept.append(i)
        before += weights[i]
    return sorted(kept)


@settings(max_examples=300, deadline=None)
@given(
    # Whole numbers have many ties; weights that are powers of two are summed without rounding.
    st.lists(st.integers(-12, 3), min_size=1, max_size=40),
    st.none() | st.integers(1, 45),
    st.sampled_from([1.0, 0.999, 0.9, 0.75, 0.5, 0.25, 1e-3]),
)
def test_cuts_are_those_of_a_sorted_vocabulary(values, top_k, top_p):
    logits = np.array(values, dtype=np.float32)
    weights = np.exp2(logits.astype(np.float64))
    found = likely_ids(logits, weights, top_k, top_p)
    found = list(range(len(values))) if found is None else found.tolist()
    assert found == naive_ids(logits, weights, top_k, top_p)


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 1.0), (20, 1.0), (None, 0.8), (20, 0.8)])
def test_frequencies_are_the_probabilities_of_what_is_left(top_k, top_p):
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)) * 1.5
    count = 20_000
    found = np.bincount(draws(SamplingConfig(0.7, top_k, top_p, seed=5), count, logits=logits), minlength=50) / count
    weights = torch.exp(logits.double() / 0.7).numpy()
    expected = np.zeros(50)
    ids = naive_ids(logits.numpy(), weights, top_k, top_p)
    expected[ids] = weights[ids] / weights[ids].sum()
    assert np.all(found[expected == 0] == 0)
    # Five standard deviations of each.
    assert np.all(np.abs(found - expected) <= 5 * np.sqrt(expected * (1 - expected) / count))


def test_equal_weights_are_still_cut_by_logits():
    """At temperatures where all probabilities round to the same number."""
    assert set(draws(SamplingConfig(temperature=1e300, top_k=1))) == {1}
    assert set(draws(SamplingConfig(temperature=1e300, top_k=2))) == {1, 2}
    assert set(draws(SamplingConfig(temperature=1e300, top_p=0.4))) == {1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(temperature, value):
    with pytest.raises(ArtifactCorruptError, match="model: expected finite logits, found"):
        draws(SamplingConfig(temperature=temperature), 1, logits=torch.tensor([0.0, value, 1.0]))


def test_repetition_penalty_counts_prompt_and_draws():
    logits = torch.tensor([2.0, 1.9, -1.0, -1.05])
    # Positive logits are divided by it, negative ones multiplied.
    penalty = SamplingConfig(repetition_penalty=1.1)
    assert draws(penalty, 4, logits=logits) == [0, 1, 0, 0]
    assert draws(penalty, 1, prompt=[0], logits=logits) == [1]
    assert draws(penalty, 1, prompt=[2], banned=[0, 1], logits=logits) == [3]
    assert draws(SamplingConfig(), 3, prompt=[0], logits=logits) == [0, 0, 0]


def test_extreme_settings_are_still_distributions():
    """Temperatures next to 0 are greedy, and penalties do not make infinities that softmax cannot take."""
    assert set(draws(SamplingConfig(temperature=1e-310))) == {1}
    assert set(draws(SamplingConfig(temperature=1e-310), banned=[1])) == {2}
    logits = torch.tensor([2.0, 1.9, -1.0, -1.05])
    for penalty in (1e-300, 1e300):
        chosen = draws(SamplingConfig(temperature=1.0, repetition_penalty=penalty), 20, prompt=[0, 3], logits=logits)
        assert set(chosen) <= ({0} if penalty < 1 else {0, 1, 2, 3})


def test_streams_belong_to_requests():
    warm = SamplingConfig(temperature=1.0, seed=7)
    one, other = Sampler(warm, (), (), 4), Sampler(warm, (), (), 4)
    mixed = [(one.draw(LOGITS), torch.rand(1), other.draw(LOGITS)) for _ in range(50)]
    assert [a for a, _, _ in mixed] == [b for _, _, b in mixed] == draws(warm, 50)


def test_probabilities():
    found = token_logprob(LOGITS, 2, 3)
    assert found.logprob == pytest.approx(math.log(0.3), abs=1e-6)
    assert [token for token, _ in found.top][:2] == [1, 2] and len(found.top) == 3
    assert found.top[0][1] == pytest.approx(math.log(0.5), abs=1e-6)
    assert token_logprob(LOGITS, 2, 0).top == () and len(token_logprob(LOGITS, 0, 99).top) == 4
    probability, entropy = probability_and_entropy(LOGITS, 1)
    assert probability == pytest.approx(0.5, abs=1e-6)
    assert entropy == pytest.approx(-sum(p * math.log(p) for p in (0.1, 0.5, 0.3, 0.1)), abs=1e-6)
    with_zero = torch.tensor([0.0, -math.inf])
    assert probability_and_entropy(with_zero, 0) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", math.inf), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5), ("seed", -1),
     ("seed", 2**63), ("repetition_penalty", 0.0), ("repetition_penalty", math.inf), ("repetition_penalty", math.nan)],
)  # fmt: skip
def test_impossible_settings(field, value):
    with pytest.raises(ConfigError, match=field):
        SamplingConfig(**{field: value})
