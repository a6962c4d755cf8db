"""Hostile requests out of an OpenAPI document: bodies that follow the schema, bodies that break it in one place, and
bodies that are damaged as bytes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from hypothesis import strategies as st

#: Values that programs stumble over, for any field.
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**63, -(2**63) - 1, 10**30, -0.0, 1e-320, 1e308, float("nan"), float("inf"),
    "", "\x00", "\ufffe", "\u202e", "𝕬", "'; DROP TABLE--", "../../etc/passwd", "<script>", "%00", "null", "1",
    "x" * 5000, [], {}, [[]], [None], [[[1]]], [1, "a"], [10**30], ["\x00"] * 100, [0] * 3000, [[0]] * 300,
    {"a": {"b": {}}}, {"__proto__": 1}, [{"a": 1}], ["x"] * 50,
)  # fmt: skip
_NAMES = st.sampled_from(["", " ", "Prompt", "__class__", "prompt\x00", "é", "tools", "messages", "x" * 300])
_TEXT = st.text(max_size=40)


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One request."""

    method: str
    path: str
    content: bytes | None
    headers: dict[str, str]


def values(schema: dict[str, Any], root: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema allows (the parts of the language that pydantic writes for this server)."""
    if "$ref" in schema:
        name = schema["$ref"].removeprefix("#/components/schemas/")
        return values(root["components"]["schemas"][name], root)
    if "anyOf" in schema:
        return st.one_of([values(option, root) for option in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "null":
        return st.none()
    if kind == "boolean":
        return st.booleans()
    if kind == "string":
        return st.text(min_size=schema.get("minLength", 0), max_size=min(schema.get("maxLength", 60), 60))
    if kind == "integer":
        least = schema.get("minimum", -(2**40))
        most = schema.get("maximum", least + 2**40)
        return st.integers(least, most) | st.integers(least, min(most, least + 8))
    if kind == "number":
        return st.floats(
            schema.get("minimum", schema.get("exclusiveMinimum")),
            schema.get("maximum"),
            exclude_min="exclusiveMinimum" in schema,
            allow_nan=False,
        )
    if kind == "array":
        return st.lists(
            values(schema["items"], root),
            min_size=schema.get("minItems", 0),
            max_size=min(schema.get("maxItems", 6), 6),
        )
    if kind == "object":
        properties = schema.get("properties", {})
        required = {name: values(properties[name], root) for name in schema.get("required", [])}
        optional = {name: values(p, root) for name, p in properties.items() if name not in required}
        return st.fixed_dictionaries(required, optional=optional)
    raise AssertionError(f"no values for {schema}")


@st.composite
def bodies(draw: st.DrawFn, schema: dict[str, Any], root: dict[str, Any]) -> bytes:
    """Bytes of a body: valid, with one or two fields replaced, added or left out, or damaged."""
    body = draw(values(schema, root))
    for _ in range(draw(st.integers(0, 2))):
        match draw(st.sampled_from(["replace", "replace", "add", "drop", "whole"])):
            case "replace" if isinstance(body, dict):
                body[draw(st.sampled_from(sorted(schema["properties"])))] = draw(st.sampled_from(HOSTILE))
            case "add" if isinstance(body, dict):
                body[draw(_NAMES)] = draw(st.sampled_from(HOSTILE))
            case "drop" if isinstance(body, dict) and body:
                del body[draw(st.sampled_from(sorted(body)))]
            case "whole":
                body = draw(st.sampled_from(HOSTILE))
    content = json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    match draw(st.sampled_from(["whole"] * 6 + ["cut", "flip", "insert", "twice", "bom", "deep"])):
        case "cut":
            content = content[: draw(st.integers(0, len(content)))]
        case "flip" if content:
            place = draw(st.integers(0, len(content) - 1))
            content = content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
        case "insert":
            place = draw(st.integers(0, len(content)))
            content = content[:place] + draw(st.binary(min_size=1, max_size=20)) + content[place:]
        case "twice":
            content += content
        case "bom":
            content = b"\xef\xbb\xbf" + content
        case "deep":
            content = b'{"prompt":' + b"[" * draw(st.integers(1, 5000))
    return content


@st.composite
def hostile_requests(draw: st.DrawFn, root: dict[str, Any]) -> Hostile:
    """A request to a path of the document, mostly one with a body, sometimes with the wrong method or headers."""
    operations = [(path, method) for path, item in root["paths"].items() for method in item]
    with_body = [(p, m) for p, m in operations if "requestBody" in root["paths"][p][m]]
    path, method = draw(st.sampled_from(with_body * 4 + operations))
    operation = root["paths"][path][method]
    content = None
    headers = {"content-type": "application/json"}
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        name = schema["$ref"].removeprefix("#/components/schemas/")
        content = draw(bodies(root["components"]["schemas"][name], root))
    match draw(st.sampled_from(["as it is"] * 8 + ["method", "type", "path", "origin", "header"])):
        case "method":
            method = draw(st.sampled_from(["get", "put", "delete", "patch", "options", "trace", "head", "xyz"]))
        case "type":
            headers["content-type"] = draw(st.sampled_from(["text/plain", "", "application/json; charset=utf-16", "*"]))
        case "path":
            path = draw(st.sampled_from(["//v1/completions", "/v1/completions/", "/V1/completions", "/%2e%2e/", "/*"]))
        case "origin":
            headers["origin"] = draw(st.sampled_from(["http://evil.example", "null", "file://", "x" * 500]))
        case "header":
            headers["x-" + draw(st.sampled_from("abc"))] = draw(st.text(st.characters(codec="ascii", categories=["L"])))
    if "{" in path:
        path = path.partition("{")[0] + draw(
            st.sampled_from(["a", "%00", "%0d%0a", "..%2f..", "%F0%9F%98%80", "x" * 900])
        )
    return Hostile(method.upper(), path, content, headers)


#: What no HTTP client sends. Each is sent on a connection of its own, which is then closed.
GARBAGE: tuple[bytes, ...] = (
    b"\x00" * 64,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)),
    b"GET\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /\x00 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nhost: evil.example\r\n\r\n",
    b"CONNECT localhost:22 HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\n folded: header\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nhello",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: gzip\r\n\r\nx",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\nQQ\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n" * 50 + b"garbage",
    b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\nPOST /v1/completions HTTP/1.1\r\nhost: localh",
    b"\r\n" * 1000,
)
