"""A fitted policy on the server: it decides for prompts that do not say when to retrieve; clients name no file."""

from __future__ import annotations

import json
import math

import httpx
import pytest

from retro.artifacts.retrieval_rule import ConfidenceRule, PopularityRule, RuleArms
from retro.config.errors import ConfigError
from retro.config.serving import ServeConfig
from retro.inference.opening import open_language_model
from retro.serving.load import open_served_model, serve_language_model
from tests.eval.workspace import workspace
from tests.serving.live_server import LiveServer

__all__ = ["workspace"]

ARMS = RuleArms("closed_book", "retro")
POPULARITY = PopularityRule({"axis": math.log(100)}, math.inf, False, ARMS)
BODY = {"prompt": "the sum of", "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def lm(workspace):
    return open_language_model(workspace.retro)[0]


@pytest.fixture(scope="module")
def popularity(lm):
    with LiveServer(serve_language_model(lm, "tiny", slots=4, rule=POPULARITY), slots=4) as server:
        yield server


@pytest.fixture(scope="module")
def confidence(lm):
    rule = ConfidenceRule("mean", 4, math.inf, ARMS)
    with LiveServer(serve_language_model(lm, "tiny", slots=4, rule=rule), slots=4) as server:
        yield server


def ask(server, **fields):
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        return client.post("/v1/completions", json={**BODY, **fields})


def retrieved(server, **fields):
    answer = ask(server, **fields)
    assert answer.status_code == 200, answer.text
    return [bool(choice["retrieved"]) for choice in answer.json()["choices"]]


def test_popularity_decides_for_each_prompt(popularity):
    assert retrieved(popularity, relation="axis", popularity=99) == [True]
    assert retrieved(popularity, relation="axis", popularity=101) == [False]
    assert retrieved(popularity, relation="axis") == retrieved(popularity) == [False]
    assert retrieved(popularity, popularity=1e6, retrieve="policy") == [True]
    both = {"prompt": ["the sum of", "x"], "n": 2}
    assert retrieved(popularity, **both, relation="axis", popularity=[99, 101]) == [True, True, False, False]
    assert retrieved(popularity, **both, relation=["axis", None], popularity=101) == [False, False, True, True]
    assert retrieved(popularity, **both, popularity=[None, 0]) == [False, False, True, True]


def test_a_request_may_say_otherwise(popularity):
    assert retrieved(popularity, retrieve="on") == [True]
    assert retrieved(popularity, retrieve="off") == [False]


def test_an_unsure_answer_is_begun_again_with_retrieval(confidence):
    assert retrieved(confidence) == retrieved(confidence, retrieve="policy") == [True]
    texts = [ask(confidence, **fields).json()["choices"][0]["text"] for fields in ({}, {"retrieve": "on"})]
    assert texts[0] == texts[1]


def test_models_say_what_the_policy_reads(popularity, confidence):
    for server, kind in ((popularity, "popularity"), (confidence, "confidence")):
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            assert client.get("/v1/models").json()["data"][0]["retro"]["policy"] == kind


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"popularity": -1}, "popularity", "expected monthly page views, 0 or more"),
        ({"popularity": True}, "popularity", "expected monthly page views, 0 or more"),
        ({"popularity": "5"}, "popularity", "expected monthly page views, 0 or more"),
        ({"popularity": [1, 2]}, "popularity", "expected one for each of the 1 prompts, found 2"),
        ({"relation": []}, "relation", "expected one for each of the 1 prompts, found 0"),
        ({"relation": 3}, "relation", "expected a string of up to 256 characters"),
        ({"relation": "x" * 257}, "relation", "expected a string of up to 256 characters"),
        ({"popularity": 3, "retrieve": "on"}, "popularity", "retrieve is 'on'; leave it out"),
        ({"retrieve": "policy:/etc/hostname"}, "retrieve", "expected on, off, every:TOKENS"),
    ],
)
def test_what_cannot_be_decided_by_is_refused(popularity, fields, param, message):
    answer = ask(popularity, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param and message in error["message"]


def test_fields_that_the_policy_does_not_read_are_refused(confidence, lm):
    answer = ask(confidence, relation="axis")
    assert answer.status_code == 400 and "decides by confidence" in answer.json()["error"]["message"]
    served = serve_language_model(lm, "tiny", slots=1)
    with LiveServer(served, slots=1) as server:
        answer = ask(server, popularity=3)
        assert answer.status_code == 400 and "this server has no such policy" in answer.json()["error"]["message"]
        answer = ask(server, retrieve="policy")
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "retrieve"


def test_the_configuration_names_the_file(workspace, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(POPULARITY.to_json()))
    served = open_served_model(ServeConfig(checkpoint=str(workspace.retro), policy=str(path), slots=1))
    assert served.policy == "popularity"
    with pytest.raises(ConfigError, match="policy: this model is a GPT"):
        open_served_model(ServeConfig(checkpoint=str(workspace.gpt), policy=str(path)))
    with pytest.raises(ConfigError, match="policy: decides when to retrieve, and retrieval is off"):
        ServeConfig(checkpoint="x", policy=str(path), retrieval="off")
