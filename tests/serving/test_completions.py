"""What the endpoint answers: OpenAI's objects, and the evidence."""

from __future__ import annotations

import pytest

from retro.serving.completion_response import Completion
from tests.serving.fake_engine import CHUNK, HOSTILE
from tests.serving.streams import join_stream, read_stream

REQUESTS = {
    "plain": {},
    "two choices": {"n": 2, "temperature": 1.0, "seed": 5},
    "prompts": {"prompt": ["one", "two", "three"], "n": 2, "seed": 1},
    "token ids": {"prompt": [[104, 105], [105]]},
    "echo": {"echo": True},
    "log-probabilities": {"logprobs": 3},
    "log-probabilities without alternatives": {"logprobs": 0},
    "stop": {"stop": ["beta"]},
    "stop inside a character's bytes": {"stop": "lta"},
    "no retrieval": {"retrieve": "off"},
    "one neighbor": {"num_neighbors": 1},
}


def test_an_answer_has_openais_form_and_names_its_evidence(served):
    answer = served.post(prompt="hi", max_tokens=6, temperature=0, model="fake")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    data = answer.json()
    assert data["object"] == "text_completion" and data["model"] == "fake" and data["id"].startswith("cmpl-")
    assert data["usage"] == {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    (choice,) = data["choices"]
    assert choice["text"] == "alpha " and choice["finish_reason"] == "length" and choice["logprobs"] is None
    first, second = choice["retrieved"]
    assert first["query"] == {"token_start": 0, "token_stop": 3, "text": "hi"}
    assert first["served"] == {"token_start": 0, "token_stop": 4, "text_start": 0, "text_stop": 4}
    assert second["query"] == {"token_start": 3, "token_stop": 7, "text": "alph"}
    assert second["served"] == {"token_start": 4, "token_stop": 6, "text_start": 4, "text_stop": 6}
    assert [n["chunk"] for n in first["neighbors"]] == [7, 8]
    neighbor = first["neighbors"][0]
    assert neighbor == {
        "document": "doc-7",
        "title": "Title of doc-7",
        "chunk": 7,
        "distance": 0.5,
        "text": HOSTILE,
        "continuation": " more",
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_streamed_and_whole_answers_are_the_same(served, name):
    body = {"prompt": "hi", "max_tokens": 30, "temperature": 0, **REQUESTS[name]}
    whole = served.post(**body).json()
    Completion.model_validate(whole, strict=True)
    chunks = read_stream(served.client, **body)
    assert join_stream(chunks) == whole["choices"]
    assert len(chunks) > len(whole["choices"]), "nothing was streamed"


def test_evidence_comes_with_the_first_token_that_it_serves(served):
    position = 0
    begun = []
    for chunk in read_stream(served.client, prompt="hi", max_tokens=10, temperature=0):
        (choice,) = chunk["choices"]
        for entry in choice.get("retrieved", []):
            if "neighbors" in entry:
                assert entry["served"]["text_start"] == position and choice["text"]
                begun.append(position)
            else:
                assert entry["served"]["text_stop"] == position + len(choice["text"])
        position += len(choice["text"])
    assert begun == [0, CHUNK, 2 * CHUNK]


def test_usage_is_streamed_on_request_only(served):
    body = {"prompt": ["hi", "ho"], "max_tokens": 3}
    assert all("usage" not in chunk for chunk in read_stream(served.client, **body))
    chunks = read_stream(served.client, **body, stream_options={"include_usage": True})
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}


def test_echo_begins_with_the_prompt_and_shifts_the_places(served):
    choice = served.post(prompt="hié", max_tokens=6, temperature=0, echo=True).json()["choices"][0]
    assert choice["text"] == "hiéalpha "
    assert [e["served"]["text_start"] for e in choice["retrieved"]] == [3, 7]
    of_ids = served.post(prompt=[104, 105], max_tokens=6, temperature=0, echo=True).json()["choices"][0]
    assert of_ids["text"] == "hialpha "


def test_log_probabilities_name_tokens_and_places(served):
    found = served.post(prompt="hi", max_tokens=21, temperature=0, logprobs=2).json()["choices"][0]["logprobs"]
    assert found["tokens"][:3] == ["a", "l", "p"] and len(found["tokens"]) == 21
    assert found["tokens"][18:20] == ["bytes:\\xc3", "bytes:\\xa9"]  # délta in bytes
    assert found["text_offset"][:3] == [0, 1, 2] and found["text_offset"][18:21] == [18, 18, 19]
    assert found["token_logprobs"] == [-0.25] * 21
    assert found["top_logprobs"][0] == {"a": -0.25, "b": -1.25}
    none = served.post(prompt="hi", max_tokens=2, logprobs=0).json()["choices"][0]["logprobs"]
    assert none["top_logprobs"] is None and len(none["tokens"]) == 2


def test_stop_strings_end_the_text_before_them(served):
    choice = served.post(prompt="hi", max_tokens=30, temperature=0, stop=["beta", "zzz"]).json()["choices"][0]
    assert choice["text"] == "alpha " and choice["finish_reason"] == "stop"
    # What served tokens behind the text's end says so.
    assert max(e["served"]["text_stop"] for e in choice["retrieved"]) == len(choice["text"])


def test_choices_of_a_prompt_have_seeds_of_their_own_and_a_seed_repeats_them(served):
    body = {"prompt": "hi", "max_tokens": 5, "n": 3, "seed": 2}
    texts = [c["text"] for c in served.post(**body).json()["choices"]]
    assert texts == ["gamma", "délt", "epsil"]
    assert [c["text"] for c in served.post(**body).json()["choices"]] == texts
    drawn = {served.post(prompt="hi", max_tokens=5).json()["choices"][0]["text"] for _ in range(20)}
    assert len(drawn) > 1, "without a seed every answer was the same"


def test_models(served):
    data = served.client.get("/v1/models").json()
    assert data["object"] == "list" and [m["id"] for m in data["data"]] == ["fake"]
    assert served.client.get("/v1/models/fake").json() == data["data"][0]
    assert data["data"][0]["retro"]["chunk_length"] == CHUNK
    missing = served.client.get("/v1/models/other")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"


def test_health_and_readiness(served):
    assert served.client.get("/health").json() == {"status": "ok"}
    assert served.client.get("/ready").json() == {"status": "ready"}
    served.live.service.drain()
    assert served.client.get("/health").status_code == 200
    assert served.client.get("/ready").status_code == 503
    refused = served.post(prompt="hi")
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "shutting_down"


def test_openais_client_works_with_it(served):
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with openai.OpenAI(base_url=served.live.url + "/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == ["fake"]
        whole = client.completions.create(
            model="fake", prompt="hi", max_tokens=9, temperature=0, logprobs=1, extra_body={"num_neighbors": 1}
        )
        assert whole.choices[0].text == "alpha bet" and whole.usage.completion_tokens == 9
        assert whole.choices[0].logprobs.tokens[0] == "a"
        assert whole.choices[0].retrieved[0]["neighbors"][0]["document"] == "doc-7"
        parts = list(client.completions.create(model="fake", prompt="hi", max_tokens=9, temperature=0, stream=True))
        assert "".join(part.choices[0].text for part in parts) == "alpha bet"
        assert parts[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="fake", prompt="hi", max_tokens=9, presence_penalty=1.5)
        assert refused.value.param == "presence_penalty"
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="gpt-4", prompt="hi")
        with pytest.raises(openai.InternalServerError):
            client.completions.create(model="fake", prompt="crash")
