"""A thousand hostile requests, made from the server's own OpenAPI document, leave it serving; so does garbage."""

from __future__ import annotations

import contextlib
import json
import random
import socket
from collections import Counter

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.serving.live_server import wait_until
from tests.serving.schema_fuzz import GARBAGE, Hostile, hostile_requests

REQUESTS = 1000
VALID = (
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b'content-length: 15\r\n\r\n{"prompt": "a"}'
)
LIMITS = {"max_body_bytes": 1 << 16, "max_tokens": 16, "body_timeout": 2.0, "request_timeout": 10.0}


def send(client: httpx.Client, request: Hostile) -> httpx.Response:
    return client.request(request.method, request.path, content=request.content, headers=request.headers)


def check(request: Hostile, answer: httpx.Response) -> None:
    """An answer that is right for a hostile request: never a failure of the server's."""
    assert answer.status_code < 500, (request, answer.text)
    if answer.status_code >= 400:
        if request.method != "HEAD":
            error = answer.json()["error"]
            assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 500, error
            assert set(error) == {"message", "type", "param", "code"}
        return
    if request.path == "/v1/completions":
        kind = answer.headers["content-type"]
        if kind.startswith("text/event-stream"):
            assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
        else:
            assert len(answer.json()["choices"]) >= 1


def test_a_thousand_hostile_requests_leave_it_serving(start):
    served = start(slots=4, limits=LIMITS)
    document = served.client.get("/openapi.json").json()
    counts: Counter[int] = Counter()

    @settings(max_examples=REQUESTS, suppress_health_check=list(HealthCheck), database=None)
    @given(hostile_requests(document))
    def attack(request: Hostile) -> None:
        answer = send(served.client, request)
        counts[answer.status_code] += 1
        check(request, answer)

    attack()
    print(dict(counts))
    # It was neither all refused at the door nor all harmless.
    assert sum(counts.values()) >= REQUESTS
    assert counts[200] > 50 and counts[400] > 200 and {404, 405, 415} <= set(counts)
    wait_until(lambda: served.live.service.admission.taken == 0 and served.engine.active == 0)
    assert len(served.engines) == 1 and served.works()


def test_garbage_on_the_wire_leaves_it_serving(start):
    served = start(limits={**LIMITS, "body_timeout": 0.3})
    noise = random.Random(0)
    damaged = []
    for _ in range(100):
        line = bytearray(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 15\r\n\r\n" + b'{"prompt": "a"}'
        )
        for _ in range(noise.randint(1, 6)):
            line[noise.randrange(len(line))] = noise.randrange(256)
        damaged.append(bytes(line))
    statuses: Counter[int] = Counter()
    for content in [*GARBAGE, *damaged]:
        with socket.create_connection(("127.0.0.1", served.live.port), timeout=10) as connection:
            answer = b""
            with contextlib.suppress(ConnectionError):
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    answer += part
        if answer:
            statuses[int(answer.split(b" ", 2)[1])] += 1
    print(dict(statuses))
    assert statuses[400] > 10 and not [status for status in statuses if status >= 500]
    wait_until(lambda: not served.live._server.server_state.connections or served.works())
    assert served.works() and len(served.engines) == 1


def test_the_document_describes_what_is_answered(served):
    """The schemas of the answers in the document are those of the answers."""
    jsonschema = pytest.importorskip("jsonschema", reason="the package jsonschema is not installed")
    document = served.client.get("/openapi.json").json()

    def matches(name: str, value: object) -> None:
        jsonschema.validate(value, {**document, "$ref": f"#/components/schemas/{name}"})

    matches("Completion", served.post(prompt="hi", logprobs=2, max_tokens=5).json())
    matches("ErrorBody", served.post(prompt=[]).json())
    body = document["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/CompletionRequest"}
    matches("CompletionRequest", {"prompt": "hi", "stop": ["a"], "best_of": 1})
    with pytest.raises(jsonschema.ValidationError):
        matches("CompletionRequest", {"prompt": "hi", "frobnicate": 1})
    assert json.dumps(document).count('"operationId"') == len(document["paths"])
