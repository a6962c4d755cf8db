"""Configuration of `retro serve`: the model, where it listens, and what it takes from clients."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal

from retro.config.checks import require


def _between(config: object, low: float, high: float, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(value is None or low <= value <= high, f"{name}: expected {low:g} to {high:g}, found {value}")


@dataclass(frozen=True)
class LimitsConfig:
    """What one client may ask for, and what all may ask for together. Times in seconds.

    max_body_bytes: of a request's body; max_prompt_tokens: per prompt, begin-of-text included (None = what the model
    sees at once); max_tokens: new tokens per choice; max_prompts: prompts per request; max_choices: prompts times n;
    max_queued: choices that wait for a slot, beyond them requests are refused with 429; max_connections: open
    connections, beyond them 503; request_timeout: from the whole body to the last token, waiting included;
    body_timeout: from a connection's first byte to the end of the headers, and as long again for the body;
    write_timeout: a client that takes nothing for so long is disconnected; keep_alive: idle connections stay open for
    so long; shutdown_grace: after SIGTERM or SIGINT running requests have so long to finish before they are cancelled.
    """

    max_body_bytes: int = 1 << 20
    max_prompt_tokens: int | None = None
    max_tokens: int = 1024
    max_prompts: int = 16
    max_choices: int = 16
    max_queued: int = 64
    max_connections: int = 512
    request_timeout: float = 120.0
    body_timeout: float = 10.0
    write_timeout: float = 30.0
    keep_alive: float = 5.0
    shutdown_grace: float = 10.0

    def __post_init__(self) -> None:
        _between(self, 256, 1 << 30, "max_body_bytes")
        _between(self, 1, 1 << 20, "max_prompt_tokens", "max_tokens", "max_prompts", "max_choices", "max_connections")
        _between(self, 0, 1 << 20, "max_queued")
        _between(self, 0.05, 86400, "request_timeout", "body_timeout", "write_timeout")
        _between(self, 0, 86400, "keep_alive", "shutdown_grace")


@dataclass(frozen=True)
class ServeConfig:
    """Serve one checkpoint over HTTP.

    checkpoint: a run folder (its newest checkpoint) or a checkpoint folder; release, database, num_neighbors,
    window_length, device, precision: as for `retro generate` (num_neighbors is also the most that a request may ask
    for); retrieval: "off" opens no database, and requests cannot switch it on; policy: a policy.json of `retro qa
    adaptive`, which decides for each prompt whether to retrieve, unless a request says otherwise; model_name: what
    clients call the model (None = the run's name); host: address to listen on, only this machine by default; port: 0 =
    any free one; allowed_hosts: names that requests may address the server by, besides localhost, IP addresses and
    `host` (a guard against DNS rebinding; "*" = any); allowed_origins: web origins, as https://example.org, whose pages
    may use the server from a browser, besides its own page; slots: sequences decoded together; page: whether / is a
    page to try the model; log_level: of the lines on stderr.
    """

    checkpoint: str
    release: str | None = None
    database: str | None = None
    num_neighbors: int | None = None
    window_length: int | None = None
    retrieval: Literal["on", "off"] = "on"
    policy: str | None = None
    device: str = "auto"
    precision: Literal["fp32", "bf16"] = "fp32"
    model_name: str | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    slots: int = 8
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    page: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        require(self.checkpoint != "", "checkpoint is required: a run folder or a checkpoint folder")
        require(
            self.policy is None or self.retrieval == "on",
            "policy: decides when to retrieve, and retrieval is off; remove one of them",
        )
        require(self.host != "", "host: expected an address or a name, e.g. 127.0.0.1, found nothing")
        require(self.model_name != "", "model_name: expected a name, found nothing; leave it out for the run's")
        _between(self, 1, 1 << 20, "num_neighbors", "window_length")
        _between(self, 0, 65535, "port")
        _between(self, 1, 1024, "slots")
        for name in self.allowed_hosts:
            require(
                name == "*" or (name != "" and not set(name) & set("/:@*? ")),
                f"allowed_hosts: expected host names without port, e.g. models.example.org, found {name!r}",
            )
        for origin in self.allowed_origins:
            scheme, separator, rest = origin.partition("://")
            require(
                scheme in ("http", "https") and separator != "" and rest != "" and "/" not in rest,
                f"allowed_origins: expected scheme://host[:port], e.g. https://example.org, found {origin!r}",
            )
        require(
            self.limits.max_choices <= self.slots + self.limits.max_queued,
            f"limits.max_choices: expected at most slots + limits.max_queued = {self.slots + self.limits.max_queued}, "
            f"found {self.limits.max_choices}: such a request could never be admitted",
        )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
