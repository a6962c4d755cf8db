"""Streamed answers, read and put together."""

from __future__ import annotations

import json
from typing import Any

import httpx


def read_stream(client: httpx.Client, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed completion, [DONE] left out (it must be there)."""
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line[6:]) for line in lines[:-1]]


def join_stream(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices as the answer without streaming has them, by the rule of the documentation: texts follow each other,
    retrievals are merged by their index."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for piece in chunk["choices"]:
            known = choices.setdefault(
                piece["index"],
                {"index": piece["index"], "text": "", "logprobs": None, "finish_reason": None, "retrieved": []},
            )
            known["text"] += piece["text"]
            known["finish_reason"] = piece["finish_reason"]
            if piece["logprobs"] is not None:
                if known["logprobs"] is None:
                    known["logprobs"] = {name: [] for name in piece["logprobs"]}
                for name, values in piece["logprobs"].items():
                    known["logprobs"][name] = None if values is None else known["logprobs"][name] + values
            for entry in piece.get("retrieved", []):
                if entry["index"] < len(known["retrieved"]):
                    known["retrieved"][entry["index"]].update(entry)
                else:
                    known["retrieved"].append(dict(entry))
    return [choices[index] for index in sorted(choices)]
