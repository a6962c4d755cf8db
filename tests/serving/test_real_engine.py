"""The server around the real engine with a tiny untrained model: what is served is what the model generates."""

from __future__ import annotations

import threading

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from retro.config.errors import ConfigError
from retro.config.serving import ServeConfig
from retro.inference.language_model import GenerateRequest
from retro.inference.opening import open_language_model
from retro.retrieval.policy import parse_policy
from retro.serving.load import open_served_model, serve_language_model
from tests.eval.workspace import CHUNK, workspace
from tests.serving.live_server import LiveServer, wait_until
from tests.serving.schema_fuzz import Hostile, hostile_requests
from tests.serving.streams import join_stream, read_stream
from tests.serving.test_fuzz import check, send

__all__ = ["workspace"]

PROMPTS = ["Return the mean of all rows", "x", "Parameters: data, limit, fill, axis of the rows", "é € 𝕬"]


@pytest.fixture(scope="module")
def lm(workspace):
    return open_language_model(workspace.retro)[0]


@pytest.fixture(scope="module")
def live(lm):
    with LiveServer(serve_language_model(lm, "tiny", slots=4), slots=4, limits={"max_tokens": 64}) as server:
        yield server


@pytest.fixture
def client(live):
    with httpx.Client(base_url=live.url, timeout=60, trust_env=False) as opened:
        yield opened


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("retrieve", ["on", "off", "every:4", "adaptive:0.5"])
def test_the_text_is_the_models_and_streams_are_the_same(client, lm, prompt, retrieve):
    body = {"prompt": prompt, "max_tokens": 40, "temperature": 0, "retrieve": retrieve}
    (whole,) = client.post("/v1/completions", json=body).json()["choices"]
    policy = parse_policy(retrieve)
    expected = lm.generate_until([GenerateRequest(prompt, 40, policy=policy)])[0]
    assert whole["text"] == expected.text
    assert [(e["query"]["token_start"], e["query"]["token_stop"]) for e in whole["retrieved"]] == [
        (evidence.start, evidence.stop) for evidence in expected.evidence
    ]
    assert bool(whole["retrieved"]) == (retrieve != "off")
    assert join_stream(read_stream(client, **body)) == [whole]


def test_steps_of_more_than_a_chunk_are_refused_as_on_the_command_line(client):
    body = {"prompt": "x", "max_tokens": 2, "retrieve": f"every:{CHUNK + 1}"}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 400 and f"every:1 to every:{CHUNK}" in answer.json()["error"]["message"]
    assert client.post("/v1/completions", json=body | {"retrieve": f"every:{CHUNK}"}).status_code == 200


@pytest.mark.parametrize("retrieve", ["", f"every:{CHUNK + 1}", "every:0", "adaptive:nan"])
def test_policies_that_mean_nothing_are_refused(client, retrieve):
    answer = client.post("/v1/completions", json={"prompt": "x", "retrieve": retrieve})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "retrieve"


def test_evidence_covers_the_text_without_gap_or_overlap(client, lm):
    body = {"prompt": PROMPTS[2], "max_tokens": 50, "temperature": 0}
    (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    prompt = len(lm.prompt_tokens(PROMPTS[2]))
    serving = [e for e in choice["retrieved"] if e["served"]["token_stop"] > e["served"]["token_start"]]
    assert len(serving) == -(-50 // CHUNK) and len(choice["retrieved"]) > len(serving)
    assert serving[0]["query"]["token_stop"] == prompt
    place = 0
    for entry in serving:
        assert entry["served"]["text_start"] == place and len(entry["neighbors"]) == 2
        assert entry["query"]["token_stop"] == prompt + entry["served"]["token_start"]
        place = entry["served"]["text_stop"]
    assert place == len(choice["text"])


def test_log_probabilities_are_the_models(client, lm):
    body = {"prompt": "Return the", "max_tokens": 8, "temperature": 0, "retrieve": "off", "logprobs": 3}
    found = client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == 8
    for value, top in zip(found["token_logprobs"], found["top_logprobs"], strict=True):
        assert len(top) == 3 and value <= max(top.values()) + 1e-9 < 0


def test_concurrent_requests_are_decoded_together_with_the_same_texts(live, client):
    bodies = [{"prompt": PROMPTS[i % 4], "max_tokens": 24, "temperature": 0.8, "seed": i} for i in range(12)]
    alone = [client.post("/v1/completions", json=body).json()["choices"] for body in bodies]
    together: dict[int, list] = {}

    def ask(number: int) -> None:
        with httpx.Client(base_url=live.url, timeout=60, trust_env=False) as own:
            together[number] = join_stream(read_stream(own, **bodies[number]))

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [together[i] for i in range(len(bodies))] == alone


def test_prompts_of_the_models_whole_window_are_served_and_longer_ones_refused(client, lm):
    ids = [lm.tokenizer.encode("x")[0]]
    full = client.post("/v1/completions", json={"prompt": ids * lm.window_length, "max_tokens": 8})
    assert full.status_code == 200 and full.json()["usage"]["completion_tokens"] > 0
    longer = client.post("/v1/completions", json={"prompt": ids * (lm.window_length + 1)})
    assert longer.status_code == 400 and longer.json()["error"]["code"] == "context_length_exceeded"


def test_a_database_that_fails_is_survived(live, client, lm, monkeypatch):
    def fail(*unused):
        raise OSError("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(lm.retriever, "retrieve", fail)
        answer = client.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 500 and answer.json()["error"]["code"] == "engine_failure"
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"retrieval": "off", "num_neighbors": 1}, "num_neighbors: nothing is retrieved"),
        ({"window_length": CHUNK}, f"window_length: expected more than one chunk of {CHUNK} tokens, found {CHUNK}"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_anything_is_served(workspace, fields, message):
    with pytest.raises(ConfigError, match=message):
        open_served_model(ServeConfig(checkpoint=str(workspace.retro), **fields))


def test_hostile_requests_leave_the_model_serving(workspace):
    config = ServeConfig(checkpoint=str(workspace.retro), slots=4)
    limits = {"max_tokens": 4, "max_body_bytes": 1 << 16, "request_timeout": 30.0}
    with LiveServer(open_served_model(config), slots=4, limits=limits) as server:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
            document = client.get("/openapi.json").json()
            body = {"prompt": "Return the mean", "max_tokens": 4, "temperature": 0}
            before = client.post("/v1/completions", json=body).json()["choices"]
            statuses = []

            @settings(max_examples=300, suppress_health_check=list(HealthCheck), database=None)
            @given(hostile_requests(document))
            def attack(request: Hostile) -> None:
                answer = send(client, request)
                statuses.append(answer.status_code)
                check(request, answer)

            attack()
            assert statuses.count(200) > 15
            wait_until(lambda: server.service.admission.taken == 0)
            assert client.post("/v1/completions", json=body).json()["choices"] == before
