"""Prometheus metrics of one server, in a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_STEP_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters, gauges and histograms; all names begin with `retro_`. Thread-safe."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=registry)
        self.requests = Counter(
            "retro_http_requests", "Answered HTTP requests", ["method", "path", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "retro_http_request_seconds",
            "From the head of a request to the end of its answer",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "retro_time_to_first_token_seconds",
            "From a parsed completion request to the first new token of a choice",
            buckets=_SECONDS,
            registry=registry,
        )
        self.generation_seconds = Histogram(
            "retro_generation_seconds",
            "From a parsed completion request to its last token",
            buckets=_SECONDS,
            registry=registry,
        )
        self.step_seconds = Histogram(
            "retro_engine_step_seconds",
            "One step of the engine: one token of every running choice",
            buckets=_STEP_SECONDS,
            registry=registry,
        )
        self.prompt_tokens = Counter("retro_prompt_tokens", "Tokens of prompts", registry=registry)
        self.new_tokens = Counter("retro_generated_tokens", "New tokens", registry=registry)
        self.retrievals = Counter("retro_retrievals", "Retrievals", registry=registry)
        self.choices = Counter("retro_choices", "Finished choices", ["finish_reason"], registry=registry)
        self.rejected = Counter(
            "retro_rejected_requests",
            "Requests refused because the server is full or stops",
            ["reason"],
            registry=registry,
        )
        self.cancelled = Counter(
            "retro_cancelled_requests", "Generations that were cancelled", ["reason"], registry=registry
        )
        self.engine_failures = Counter("retro_engine_failures", "Failures inside the engine", registry=registry)
        self.active = Gauge("retro_active_choices", "Choices that hold a slot", registry=registry)
        self.waiting = Gauge("retro_waiting_choices", "Choices that wait for a slot", registry=registry)
        self.slots = Gauge("retro_slots", "Slots of the engine", registry=registry)

    def on_step(self, seconds: float, active: int, waiting: int) -> None:
        """After each step of the engine; seconds 0: it became idle."""
        if seconds > 0:
            self.step_seconds.observe(seconds)
        self.active.set(active)
        self.waiting.set(waiting)

    def render(self) -> bytes:
        """The exposition format of Prometheus."""
        return generate_latest(self.registry)
