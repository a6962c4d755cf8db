"""Limits of size, number and time; clients that go away; pages of foreign origins."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import httpx
import pytest

from tests.serving.live_server import wait_until
from tests.serving.streams import join_stream, read_stream

HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"


def connect(served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.live.port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def occupied(served, body: dict, count: int) -> list[threading.Thread]:
    """Requests that are inside while the engine's gate is shut."""
    served.engine.gate.clear()
    threads = [threading.Thread(target=served.post, kwargs=body) for _ in range(count)]
    for thread in threads:
        thread.start()
    wait_until(lambda: served.live.service.admission.taken == count)
    return threads


def finish(served, threads: list[threading.Thread]) -> None:
    served.engine.gate.set()
    for thread in threads:
        thread.join(20)


# size and number


def test_a_body_beyond_the_limit_is_refused(start):
    served = start(limits={"max_body_bytes": 2000})
    answer = served.post(prompt="x" * 3000)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    assert served.works()


def test_a_body_without_length_is_refused_while_it_comes(start):
    served = start(limits={"max_body_bytes": 2000})
    with connect(served) as connection:
        connection.sendall(HEAD + b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(5):
            connection.sendall(b"1f4\r\n" + b"x" * 500 + b"\r\n")
        answer = connection.recv(65536)  # the body never ends
        assert status_of(answer) == 413
    assert served.works()


def test_a_length_that_lies_is_no_matter(start):
    served = start(limits={"max_body_bytes": 2000, "body_timeout": 0.3})
    with connect(served) as connection:
        connection.sendall(HEAD + b"content-length: 99999999999999999999999\r\n\r\n")
        assert status_of(connection.recv(65536)) in (400, 413)
    assert served.works()


def test_long_prompts_and_many_tokens_and_choices_are_refused(start):
    served = start(limits={"max_prompt_tokens": 10, "max_tokens": 8, "max_prompts": 2, "max_choices": 4})
    cases = [
        ({"prompt": "x" * 10}, "prompt", "at most 10 tokens, found 11"),
        ({"prompt": "x", "max_tokens": 9}, "max_tokens", "at most 8"),
        ({"prompt": ["x"] * 3}, "prompt", "at most 2 prompts"),
        ({"prompt": ["x"] * 2, "n": 3}, "n", "at most 4 choices"),
    ]
    for body, param, message in cases:
        answer = served.post(**body)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param
        assert message in answer.json()["error"]["message"]
    assert served.post(prompt="x" * 9, max_tokens=8).status_code == 200


def test_a_full_server_answers_429_and_takes_requests_again(start):
    served = start(slots=2, limits={"max_queued": 2, "max_choices": 4})
    threads = occupied(served, {"prompt": "hi", "max_tokens": 3}, 4)
    refused = served.post(prompt="hi")
    assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert served.live.metric("retro_rejected_requests_total", reason="server_full") == 1
    finish(served, threads)
    assert served.live.service.admission.taken == 0 and served.works()


def test_too_many_connections_are_refused(start):
    served = start(limits={"max_connections": 3})
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(connect(served)) for _ in range(3)]
        wait_until(lambda: len(served.live._server.server_state.connections) == 3)
        with connect(served) as one_more:
            assert status_of(read_all(one_more)) == 503
        held[0].close()
        wait_until(lambda: len(served.live._server.server_state.connections) < 3)
        assert served.works()


# time


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_gives_its_slot_back(start, stream):
    served = start(slots=1, limits={"request_timeout": 0.3})
    answer = served.post(prompt="slow", max_tokens=500, stream=stream)
    if stream:  # it had begun: the error is the last event
        *_, error, done, _ = answer.text.split("\n\n")
        assert answer.status_code == 200 and done == "data: [DONE]"
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "timeout"
    else:
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
    assert served.live.metric("retro_cancelled_requests_total", reason="timeout") == 1
    wait_until(lambda: served.engine.active == 0)
    assert served.works()


def test_a_request_that_waits_too_long_has_a_status_even_if_streamed(start):
    served = start(slots=1, limits={"request_timeout": 0.3})
    served.engine.gate.clear()
    answer = served.post(prompt="hi", stream=True)
    assert answer.status_code == 504
    served.engine.gate.set()
    wait_until(lambda: served.engine.active == served.engine.waiting == 0)
    assert served.works()


def test_a_body_that_drips_is_refused(start):
    served = start(limits={"body_timeout": 0.3})
    with connect(served) as connection:
        connection.sendall(HEAD + b"content-length: 100\r\n\r\n")
        answer = b""
        connection.settimeout(0.05)
        while not answer:
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(65536)
        assert status_of(answer) == 408 and b"connection: close" in answer.lower()
    assert served.works()


@pytest.mark.parametrize("first", [b"", b"POST /v1/comp", HEAD])
def test_a_head_that_never_ends_is_cut_off(start, first):
    served = start(limits={"body_timeout": 0.3})
    with connect(served) as connection:
        connection.sendall(first)
        assert read_all(connection) == b""
    assert served.works()


def test_a_second_head_that_never_ends_is_cut_off(start):
    served = start(limits={"body_timeout": 0.3, "keep_alive": 30})
    with connect(served) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert status_of(answer) == 200
        connection.sendall(b"GET /hea")
        assert read_all(connection) == b""


def test_a_client_that_reads_nothing_is_cut_off(start):
    served = start(slots=1, limits={"write_timeout": 0.5, "max_choices": 16, "max_tokens": 2000, "max_queued": 20})
    body = json.dumps({"prompt": "hi", "max_tokens": 2000, "n": 16, "stream": True, "num_neighbors": 4}).encode()
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", served.live.port))
    connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
    wait_until(lambda: served.live.service.admission.taken > 0)
    wait_until(lambda: not served.live._server.server_state.connections)
    wait_until(lambda: served.live.service.admission.taken == 0)
    connection.close()
    assert served.works()


def test_a_long_request_is_not_taken_for_a_slow_one(start):
    """Times of heads and bodies do not count against generation, nor against a connection's later requests."""
    served = start(slots=1, limits={"body_timeout": 0.2, "write_timeout": 0.2, "keep_alive": 30})
    for _ in range(2):
        assert served.post(prompt="slow", max_tokens=40).status_code == 200
        time.sleep(0.3)
    assert served.live._server.server_state.total_requests == 2
    assert len(served.live._server.server_state.connections) == 1


# clients that go away


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_gives_its_slot_back(start, stream):
    served = start(slots=1)
    body = json.dumps({"prompt": "slow", "max_tokens": 1000, "stream": stream}).encode()
    with connect(served) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: served.engine.active == 1)
    wait_until(lambda: served.engine.active == 0)
    wait_until(lambda: served.live.metric("retro_cancelled_requests_total", reason="disconnect") == 1)
    assert served.live.service.admission.taken == 0 and served.works()


def test_a_client_that_goes_away_while_it_waits_leaves_the_queue(start):
    served = start(slots=1)
    body = json.dumps({"prompt": "hi", "max_tokens": 1000, "stream": True}).encode()
    threads = occupied(served, {"prompt": "hi", "max_tokens": 3}, 1)
    with connect(served) as connection:
        connection.sendall(HEAD + b"content-length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: served.live.service.admission.taken == 2)
    wait_until(lambda: served.live.service.admission.taken == 1)
    finish(served, threads)
    wait_until(lambda: served.engine.waiting == served.engine.active == 0)
    assert served.works()


# who may ask


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[::1", "a b"])
def test_foreign_names_are_refused(served, host):
    answer = served.client.get("/v1/models", headers={"host": host})
    assert answer.status_code in (400, 421)
    assert served.client.post("/v1/completions", json={"prompt": "a"}, headers={"host": host}).status_code >= 400


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:8000", "192.168.0.7", "models.lan"]
)
def test_own_names_and_addresses_are_taken(start, host):
    served = start(allowed_hosts=["Models.lan"])
    assert served.client.get("/v1/models", headers={"host": host}).status_code == 200


def test_two_hosts_are_refused(served):
    with connect(served) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nhost: evil\r\nconnection: close\r\n\r\n")
        assert status_of(read_all(connection)) in (400, 421)


def test_pages_of_foreign_origins_are_refused(start):
    served = start(allowed_origins=["https://Friend.example"])
    own = {"origin": served.live.url}
    assert served.client.post("/v1/completions", json={"prompt": "a"}, headers=own).status_code == 200
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "https://friend.example.evil"):
        answer = served.client.post("/v1/completions", json={"prompt": "a"}, headers={"origin": origin})
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    friend = served.client.post("/v1/completions", json={"prompt": "a"}, headers={"origin": "https://friend.example"})
    assert friend.status_code == 200
    assert friend.headers["access-control-allow-origin"] == "https://friend.example"


def test_without_allowed_origins_browsers_are_promised_nothing(served):
    preflight = {
        "origin": "http://evil.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    answer = served.client.options("/v1/completions", headers=preflight)
    assert answer.status_code == 403 and not [h for h in answer.headers if h.startswith("access-control")]


def test_what_forms_can_send_is_refused(served):
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        answer = served.client.post("/v1/completions", content=b'{"prompt":"a"}', headers={"content-type": kind})
        assert answer.status_code == 415 and "application/json" in answer.json()["error"]["message"]


def test_every_answer_has_security_headers(served):
    paths = {"/": 200, "/page/main.js": 200, "/v1/models": 200, "/nowhere": 404, "/page/../app.py": 404}
    for path, status in paths.items():
        answer = served.client.get(path)
        assert answer.status_code == status, path
        assert answer.headers["x-content-type-options"] == "nosniff" and answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-request-id"] and "server" not in answer.headers
    page = served.client.get("/")
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe" not in page.headers["content-security-policy"]
    again = served.client.get("/", headers={"if-none-match": page.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


def test_the_page_can_be_left_out(start):
    assert start(page=False).client.get("/").status_code == 404


def test_log_lines_cannot_be_forged(served, caplog):
    served.client.get("/v1/%0d%0a2026-01-01 INFO forged")
    served.post(prompt="hi", max_tokens=1, user="a\nforged")
    lines = [record.getMessage() for record in caplog.records]
    assert any("%0d%0a" in line for line in lines) and any("user='a\\nforged'" in line for line in lines)
    assert not any("\n" in line or "\r" in line for line in lines)


def test_requests_are_decoded_together_and_do_not_disturb_each_other(start):
    served = start(slots=8)
    alone = {i: served.post(prompt=f"p{i}", max_tokens=40, seed=i).json()["choices"] for i in range(16)}
    results: dict[int, list] = {}

    def ask(i: int) -> None:
        with httpx.Client(base_url=served.live.url, trust_env=False, timeout=30) as client:
            body = {"prompt": f"p{i}", "max_tokens": 40, "seed": i}
            if i % 2:
                results[i] = join_stream(read_stream(client, **body))
            else:
                results[i] = client.post("/v1/completions", json=body).json()["choices"]

    served.engine.gate.clear()
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    wait_until(lambda: served.live.service.admission.taken == 16)
    served.engine.gate.set()
    for thread in threads:
        thread.join(30)
    assert results == alone
    assert served.engine.most_active == 8
