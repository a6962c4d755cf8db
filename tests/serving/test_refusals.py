"""Malformed requests: a proper status, and one line that names the field."""

from __future__ import annotations

import json

import pytest

from retro.serving.completion_request import CompletionRequest, parse_completion_request
from retro.serving.errors import ApiError

GOOD = {"prompt": "hi"}
# name of the case -> (what is changed, field that the error names, a word of its message)
WRONG: dict[str, tuple[dict, str | None, str]] = {
    "no prompt": ({"prompt": ...}, "prompt", "required"),
    "null prompt": ({"prompt": None}, "prompt", "null"),
    "empty list": ({"prompt": []}, "prompt", "empty list"),
    "list of an empty list": ({"prompt": [[]]}, "prompt", "list of 1"),
    "mixed list": ({"prompt": ["a", 1]}, "prompt", "list of 2"),
    "ids and lists": ({"prompt": [1, [2]]}, "prompt", "list of 2"),
    "bools are no ids": ({"prompt": [True]}, "prompt", "token ids"),
    "negative id": ({"prompt": [-1]}, "prompt", "0 or more"),
    "fractional id": ({"prompt": [1.5]}, "prompt", "token ids"),
    "prompt of an object": ({"prompt": {"a": 1}}, "prompt", "an object"),
    "unknown field": ({"frobnicate": 1}, "frobnicate", "unknown field"),
    "unknown name of control characters": ({"a\nb": 1}, "'a\\nb'", "unknown field"),
    "zero tokens": ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
    "huge number": ({"max_tokens": 10**40}, "max_tokens", "at most 1024"),
    "fraction of a token": ({"max_tokens": 1.5}, "max_tokens", "integer"),
    "tokens as text": ({"max_tokens": "5"}, "max_tokens", "integer"),
    "tokens as bool": ({"max_tokens": True}, "max_tokens", "integer"),
    "cold": ({"temperature": -0.1}, "temperature", "greater than or equal to 0"),
    "hot": ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
    "nearly zero": ({"temperature": 1e-300}, "temperature", "0.001"),
    "no nucleus": ({"top_p": 0}, "top_p", "greater than 0"),
    "top_k 0": ({"top_k": 0}, "top_k", "1"),
    "rewarded repetition": ({"repetition_penalty": 0.5}, "repetition_penalty", "1"),
    "no choices": ({"n": 0}, "n", "1"),
    "negative seed": ({"seed": -1}, "seed", "0"),
    "seed beyond 64 bits": ({"seed": 2**64}, "seed", "less than or equal"),
    "stream as number": ({"stream": 1}, "stream", "boolean"),
    "stream options alone": ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
    "unknown stream option": ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
    "many log-probabilities": ({"logprobs": 6}, "logprobs", "5"),
    "echo with log-probabilities": ({"logprobs": 1, "echo": True}, "echo", "logprobs"),
    "five stops": ({"stop": list("abcde")}, "stop", "up to 4"),
    "empty stop": ({"stop": ""}, "stop", "1 to 256"),
    "long stop": ({"stop": "x" * 257}, "stop", "1 to 256"),
    "stop of numbers": ({"stop": [1]}, "stop", "strings"),
    "presence penalty": ({"presence_penalty": 0.1}, "presence_penalty", "not supported"),
    "frequency penalty": ({"frequency_penalty": -2}, "frequency_penalty", "not supported"),
    "penalty as bool": ({"frequency_penalty": False}, "frequency_penalty", "not supported"),
    "best of": ({"best_of": 3}, "best_of", "not supported"),
    "suffix": ({"suffix": "end"}, "suffix", "not supported"),
    "bias": ({"logit_bias": {"50256": -100}}, "logit_bias", "not supported"),
    "long user": ({"user": "u" * 257}, "user", "256"),
}


def changed(change: dict) -> dict:
    return {name: value for name, value in {**GOOD, **change}.items() if value is not ...}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields(served, case):
    change, param, word = WRONG[case]
    answer = served.client.post("/v1/completions", json=changed(change))
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["param"] == param and error["type"] == "invalid_request_error"
    assert error["message"].startswith(f"{param}: ") and word in error["message"]
    assert "\n" not in error["message"] and len(error["message"]) < 400
    if param == "stream_options.x":
        assert "known are include_usage" in error["message"]


NEUTRAL = {"presence_penalty": 0, "frequency_penalty": 0.0, "best_of": 1, "suffix": "", "logit_bias": {}}


def test_what_clients_send_by_default_is_taken(served):
    nulls = {name: None for name in CompletionRequest.model_fields if name != "prompt"}
    assert served.post(**{**GOOD, **nulls}).status_code == 200
    assert served.post(**GOOD, **NEUTRAL).status_code == 200


BODIES: dict[str, bytes] = {
    "empty": b"",
    "cut off": b'{"prompt": "a',
    "not UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "lone surrogate": b'{"prompt": "\\ud800"}',
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": Infinity}',
    "overflow": b'{"prompt": "a", "temperature": 1e999}',
    "NaN prompt": b'{"prompt": NaN}',
    "number of 10,000 digits": b'{"prompt": "a", "seed": ' + b"9" * 10_000 + b"}",
    "a list": b"[]",
    "a string": b'"prompt"',
    "null": b"null",
    "two objects": b'{"prompt": "a"}{"prompt": "b"}',
    "form": b"prompt=a&max_tokens=3",
}


@pytest.mark.parametrize("case", BODIES)
def test_bodies_that_are_no_request(served, case):
    answer = served.client.post("/v1/completions", content=BODIES[case], headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    message = answer.json()["error"]["message"]
    assert message.startswith(("body: ", "temperature: ", "prompt: ", "seed: ")) and len(message) < 400
    assert served.works()


def test_unknown_models_policies_and_tokens_are_refused_by_name(served):
    missing = served.post(**GOOD, model="gpt-4")
    assert missing.status_code == 404 and missing.json()["error"]["param"] == "model"
    policy = served.post(**GOOD, retrieve="sometimes")
    assert policy.status_code == 400 and policy.json()["error"]["param"] == "retrieve"
    token = served.post(prompt=[258])
    assert token.status_code == 400 and "below 258" in token.json()["error"]["message"]
    both = served.post(**GOOD, num_neighbors=1, retrieve="off")
    assert both.status_code == 400 and both.json()["error"]["param"] == "num_neighbors"
    many = served.post(**GOOD, num_neighbors=5)
    assert many.status_code == 400 and "at most 4" in many.json()["error"]["message"]
    refused = served.post(prompt="refuse this")
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "prompt"


def test_one_wrong_prompt_of_several_is_named(served):
    answer = served.post(prompt=[[1], [300], [2]])
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "prompt.1"


def test_paths_and_methods_that_are_not_there(served):
    nowhere = served.client.get("/v1/chat/completions")
    assert nowhere.status_code == 404 and nowhere.json()["error"]["message"].startswith("/v1/chat/completions")
    method = served.client.get("/v1/completions")
    assert method.status_code == 405 and method.headers["allow"] == "POST"
    assert "GET" in method.json()["error"]["message"]


def test_errors_of_the_parser_name_line_and_column():
    with pytest.raises(ApiError, match="line 1 column"):
        parse_completion_request(b'{"prompt": }')
    assert parse_completion_request(json.dumps({**GOOD, "stop": "x"}).encode()).stop == ("x",)
