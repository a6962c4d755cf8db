"""Prices of answers."""

import json
import math

import pytest

from retro.analysis.adaptive_prices import Prices, read_prices
from retro.analysis.adaptive_questions import pair_answers
from retro.config.errors import ConfigError
from tests.analysis.test_adaptive import row

FILE = {
    "unit": "USD",
    "per_question": {"rag": 0.5},
    "per_token": {"prompt": 0.01, "new": 0.03},
    "per_search": 0.25,
    "search_ms": 40,
}


def write(tmp_path, content):
    path = tmp_path / "cost.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_prices_worked_out_by_hand(tmp_path):
    prices = read_prices(write(tmp_path, FILE))
    passages = [{"document": "d"}]
    assert prices.price(row("a", "closed_book", 1.0)) == pytest.approx(4 * 0.01 + 0.03)
    assert prices.price(row("a", "retro", 1.0, passages=passages)) == pytest.approx(0.25 + 4 * 0.01 + 0.03)
    assert prices.price(row("a", "rag", 1.0, passages=passages)) == 0.5
    assert math.isnan(prices.price(row("a", "retro", 1.0, new_tokens=None)))


def test_a_search_takes_its_time_where_there_was_one():
    closed = [row("a", "closed_book", 1.0, latency_ms=10)]
    retrieval = [row("a", "rag", 1.0, latency_ms=30, passages=[{"document": "d"}])]
    found = pair_answers(closed, retrieval, lambda r: r["right"], Prices("USD", search_ms=500.0))
    assert found.closed.expenses["latency_ms"].tolist() == [10]
    assert found.retrieval.expenses["latency_ms"].tolist() == [530]
    assert found.retrieval.expenses["seconds"].tolist() == [1.5]
    assert "cost" not in found.closed.expenses  # no price, no cost
    found = pair_answers(closed, retrieval, lambda r: r["right"], Prices("USD", {"rag": 2.0}))
    assert (found.closed.expenses["cost"].tolist(), found.retrieval.expenses["cost"].tolist()) == ([0], [2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected a JSON file of prices"),
        ([], "expected an object with unit"),
        ({**FILE, "per_word": 1}, "expected an object with unit, per_question"),
        ({"per_search": 1}, "unit: expected a text"),
        ({"unit": "USD"}, "expected at least one price or search_ms"),
        ({**FILE, "per_token": {"prompts": 1}}, "per_token: expected of prompt, encoder, new, found prompts"),
        ({**FILE, "per_token": 1}, "per_token: expected an object"),
        ({**FILE, "search_ms": -1}, "search_ms: expected a number of 0 or more"),
        ({**FILE, "per_question": {"rag": "1"}}, "per_question.rag: expected a number"),
        ({**FILE, "per_search": True}, "per_search: expected a number"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    with pytest.raises(ConfigError) as caught:
        read_prices(write(tmp_path, content))
    assert message in str(caught.value) and "\n" not in str(caught.value)
