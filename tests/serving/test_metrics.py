"""What Prometheus is told."""

from __future__ import annotations

import threading

from tests.serving.live_server import wait_until


def test_counters_count(served):
    metric = served.live.metric
    served.post(prompt=["hi", "ho"], max_tokens=6, temperature=0)
    served.post(prompt="hi", max_tokens=30, temperature=0, stop="beta")
    served.post(prompt="hi", max_tokens=0)
    served.post(prompt="crash")
    assert metric("retro_prompt_tokens_total") == 3 + 3 + 3 + 6
    assert metric("retro_generated_tokens_total") == 6 + 6 + 10
    assert metric("retro_retrievals_total") == 2 + 2 + 3
    assert metric("retro_choices_total", finish_reason="length") == 2
    assert metric("retro_choices_total", finish_reason="stop") == 1
    assert metric("retro_engine_failures_total") == 1
    assert metric("retro_cancelled_requests_total", reason="failure") == 1
    assert metric("retro_time_to_first_token_seconds_count") == 2
    assert metric("retro_generation_seconds_count") == 2
    assert metric("retro_engine_step_seconds_count") >= 16
    assert metric("retro_slots") == 4
    counted = {"method": "POST", "path": "/v1/completions"}
    assert metric("retro_http_requests_total", **counted, status="200") == 2
    assert metric("retro_http_requests_total", **counted, status="400") == 1
    assert metric("retro_http_requests_total", **counted, status="500") == 1
    wait_until(lambda: metric("retro_active_choices") == 0)


def test_gauges_show_who_is_inside(start):
    served = start(slots=2)
    served.post(prompt="slow", max_tokens=2, n=2)
    wait_until(lambda: served.live.metric("retro_active_choices") == 0)  # the engine's thread counts after it answered
    thread = threading.Thread(target=served.post, kwargs={"prompt": "slow", "max_tokens": 15, "n": 5})
    thread.start()
    wait_until(lambda: served.live.metric("retro_active_choices") == 2)
    wait_until(lambda: served.live.metric("retro_waiting_choices") > 0)
    thread.join(30)
    wait_until(lambda: served.live.metric("retro_active_choices") == 0)


def test_clients_cannot_make_up_labels(served):
    for i in range(30):
        served.client.get(f"/nowhere/{i}")
        served.client.request(f"MADEUP{i}", "/health")
    text = served.client.get("/metrics").text
    assert served.live.metric("retro_http_requests_total", method="GET", path="other", status="404") == 30
    assert "nowhere" not in text and "MADEUP" not in text


def test_the_page_of_metrics_is_in_prometheus_format(served):
    answer = served.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "# TYPE retro_engine_step_seconds histogram" in answer.text
    assert "process_resident_memory_bytes" in answer.text
