"""The reader: test chunks with their neighbors beside them and the gain of retrieval on every token."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any

from retro.analysis.runs import Run
from retro.analysis.scored import ScoredChunks, read_scored_chunks
from retro.analysis.series import reference_run, run_titles
from retro.config.errors import ArtifactCorruptError

# Bits per token at which the background gets one shade stronger.
LEVELS = (0.25, 1.0, 2.0, 4.0)
SHARED_WORDS = 4
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")


@dataclasses.dataclass(frozen=True)
class Token:
    """One token: its text and the natural-log probability under each reading ({} where it is not scored)."""

    text: str
    logprobs: dict[str, float]

    def gain(self, against: str) -> float | None:
        """Bits that `on` saves on this token against another reading; None if either is unknown."""
        if "on" not in self.logprobs or against not in self.logprobs:
            return None
        return (self.logprobs["on"] - self.logprobs[against]) / math.log(2)


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """A retrieved chunk: document, chunk text and what follows it."""

    document: str
    text: str
    continuation: str
    distance: float | None


@dataclasses.dataclass(frozen=True)
class Sample:
    """A test chunk for the reader. document_chunk: its place in the document, None if unknown; overlap: r(C)."""

    document: str
    chunk: int | None
    document_chunk: int | None
    overlap: float | None
    context: str
    tokens: tuple[Token, ...]
    neighbors: tuple[Neighbor, ...]

    def bits(self, reading: str) -> float | None:
        """Bits that the chunk costs under one reading, over its scored tokens; None if that reading is unknown."""
        scored = [t.logprobs for t in self.tokens if t.logprobs]
        if not scored or any(reading not in logprobs for logprobs in scored):
            return None
        return -sum(logprobs[reading] for logprobs in scored) / math.log(2)


def read_samples(runs: Sequence[Run], name: str) -> tuple[Run, list[Sample]] | None:
    """Samples of the first RETRO run with any, joined with the reference GPT's log-probabilities of the same chunks
    (reading "gpt"). None if no run has samples. Raises ArtifactCorruptError where a sample is not what it should be."""
    run = next((r for r in runs if r.model == "retro" and name in r.evaluations and r.evaluations[name].samples), None)
    if run is None:
        return None
    own = read_scored_chunks(run.evaluations[name]) if run.evaluations[name].responses else None
    base = reference_run(runs)
    gpt = None
    if base.model == "gpt" and name in base.evaluations and base.evaluations[name].responses:
        gpt = read_scored_chunks(base.evaluations[name])
    rows = own.row_of_chunk() if own is not None else {}
    gpt_rows = gpt.row_of_chunk() if gpt is not None else {}
    samples = []
    for number, record in enumerate(run.evaluations[name].samples, start=1):
        try:
            samples.append(_sample(record, own, rows, gpt, gpt_rows))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            detail = f"no field {error}" if isinstance(error, KeyError) else str(error)
            path = run.evaluations[name].path / "samples.json"
            raise ArtifactCorruptError(f"{path}: sample {number}: {detail}; run `retro eval` again") from None
    return run, samples


def _sample(
    record: dict[str, Any],
    own: ScoredChunks | None,
    rows: dict[int, int],
    gpt: ScoredChunks | None,
    gpt_rows: dict[int, int],
) -> Sample:
    chunk = record.get("chunk")
    readings = {
        str(mode): [math.nan if v is None else float(v) for v in values or []]
        for mode, values in record["logprobs"].items()
    }
    if gpt is not None and chunk in gpt_rows and gpt.logprobs.get("off"):
        readings["gpt"] = gpt.logprobs["off"][gpt_rows[chunk]]
    readings = {name: values for name, values in readings.items() if values}
    pieces = [str(piece) for piece in record["pieces"]]
    lengths = {len(values) for values in readings.values()}
    if len(lengths) > 1 or max(lengths, default=0) > len(pieces):
        raise ValueError(f"expected as many log-probabilities as tokens ({len(pieces)}), found {sorted(lengths)}")
    # A document's first token has no prediction: the scored tokens are the last ones.
    unscored = len(pieces) - max(lengths, default=0)
    tokens = tuple(
        Token(
            piece.replace("▁", " "),
            {n: v[i - unscored] for n, v in readings.items() if i >= unscored and not math.isnan(v[i - unscored])},
        )
        for i, piece in enumerate(pieces)
    )
    row = rows.get(chunk) if isinstance(chunk, int) else None
    overlap = None
    if own is not None and row is not None and not math.isnan(own.overlaps[row]):
        overlap = float(own.overlaps[row])
    return Sample(
        document=str(record["document"]),
        chunk=chunk if isinstance(chunk, int) else None,
        document_chunk=int(own.document_chunks[row]) if own is not None and row is not None else None,
        overlap=overlap,
        context=str(record.get("context") or ""),
        tokens=tokens,
        neighbors=tuple(
            Neighbor(
                str(n["document"]),
                str(n["text"]),
                str(n.get("continuation") or ""),
                float(n["distance"]) if isinstance(n.get("distance"), int | float) else None,
            )
            for n in record.get("neighbors") or []
        ),
    )


def level(gain: float | None) -> str:
    """'' (no change worth a colour), 'p1'..'p4' (retrieval helps) or 'm1'..'m4' (it hurts)."""
    if gain is None:
        return ""
    strength = sum(abs(gain) >= edge for edge in LEVELS)
    return "" if not strength else f"{'p' if gain > 0 else 'm'}{strength}"


def clean(text: str) -> str:
    """Text that any HTML parser keeps as it is: no control characters, no lone surrogates."""
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    return _UNPRINTABLE.sub("\ufffd", text)


def safe(text: str) -> str:
    """Escaped for element content and for quoted attributes."""
    return escape(clean(text), quote=True)


def render_reader(runs: Sequence[Run], run: Run, samples: Sequence[Sample]) -> str:
    """The reader's HTML: a legend, a choice of what to compare with, and one <details> per sample (all usable without
    JavaScript; with it, one sample at a time and the numbers of the token under the pointer)."""
    titles = run_titles(runs)
    base = reference_run(runs)
    has_gpt = any("gpt" in token.logprobs for sample in samples for token in sample.tokens)
    own = titles[run.name]
    other = titles[base.name]
    parts = ['<div class="reader">']
    if has_gpt:
        parts.append('<input type="radio" name="against" id="against-gpt" checked>')
    parts.append(f'<input type="radio" name="against" id="against-off"{"" if has_gpt else " checked"}>')
    parts.append('<div class="reader-head"><div class="against"><span>Colour: gain against</span>')
    if has_gpt:
        parts.append(f'<label for="against-gpt">{safe(other)}</label>')
    parts.append(f'<label for="against-off">{safe(own)}, retrieval off</label></div>{_legend()}</div>')
    parts.append('<div class="samples">')
    for number, sample in enumerate(samples):
        parts.append(_render_sample(sample, number, own, other))
    parts.append("</div></div>")
    return "".join(parts)


def _legend() -> str:
    edges = [f"{edge:g}".removeprefix("0") for edge in LEVELS]
    cells = [f'<span class="key m{n}">−{edges[n - 1]}</span>' for n in (4, 3, 2, 1)]
    cells.append('<span class="key">0</span>')
    cells += [f'<span class="key p{n}">+{edges[n - 1]}</span>' for n in (1, 2, 3, 4)]
    return (
        '<div class="legend-scale"><span class="end">retrieval hurts</span>'
        f'{"".join(cells)}<span class="end">helps, bits per token</span></div>'
    )


def _render_sample(sample: Sample, number: int, own: str, other: str) -> str:
    gain_key = "gpt" if sample.bits("gpt") is not None else "off"
    on, against = sample.bits("on"), sample.bits(gain_key)
    gain = against - on if on is not None and against is not None else None
    place = f", chunk {sample.document_chunk + 1}" if sample.document_chunk is not None else ""
    gained = f"{gain:+.1f} bits".replace("-", "−") if gain is not None else ""
    readings = [
        ("gpt", other),
        ("on", own),
        ("off", f"{own}, retrieval off"),
        ("shuffled", f"{own}, shuffled neighbors"),
    ]
    totals = "".join(
        f"<li><b>{bits:.1f}</b> bits, {safe(label)}</li>"
        for key, label in readings
        if (bits := sample.bits(key)) is not None
    )
    overlap = f"<li>r(C) <b>{sample.overlap:.2f}</b></li>" if sample.overlap is not None else ""
    words = _word_runs("".join(token.text for token in sample.tokens))
    neighbors = "".join(_render_neighbor(n, i, words) for i, n in enumerate(sample.neighbors, start=1))
    if not neighbors:
        neighbors = '<p class="quiet">No neighbor served this chunk.</p>'
    context = f'<span class="context">{safe(sample.context)}</span>' if sample.context else ""
    tokens = "".join(_render_token(token, own, other) for token in sample.tokens)
    return (
        f'<details class="sample" id="sample-{number + 1}"{" open" if number == 0 else ""}>'
        f'<summary><span class="name">{safe(sample.document)}{place}</span><span class="gained">{gained}</span>'
        "</summary>"
        f'<ul class="totals">{totals}{overlap}</ul>'
        '<div class="columns"><div class="text-column"><h4>Test chunk, with the text before it</h4>'
        f'<p class="passage">{context}<span class="tokens">{tokens}</span></p>'
        f'<p class="helped">{_most_helped(sample, gain_key)}</p></div>'
        f'<div class="neighbor-column"><h4>Its neighbors</h4>{neighbors}</div></div></details>'
    )


def _render_token(token: Token, own: str, other: str) -> str:
    text = safe(token.text).replace("\n", '<span class="newline">↵</span>\n')
    if not token.logprobs:
        return f'<span class="t unscored" title="not scored: nothing precedes it">{text}</span>'
    classes = ["t"]
    for prefix, against in (("g", "gpt"), ("o", "off")):
        found = level(token.gain(against))
        if found:
            classes.append(f"{prefix}-{found}")
    lines = []
    for key, label in (("on", own), ("off", f"{own} off"), ("shuffled", f"{own} shuffled"), ("gpt", other)):
        if key in token.logprobs:
            lines.append(f"{label}: {token.logprobs[key]:.2f} nats, p = {_probability(token.logprobs[key])}")
    for key, label in (("off", "retrieval off"), ("gpt", other)):
        gain = token.gain(key)
        if gain is not None:
            lines.append(f"gain against {label}: {gain:+.2f} bits")
    return f'<span class="{" ".join(classes)}" title="{safe(chr(10).join(lines)).replace("-", "−")}">{text}</span>'


def _probability(logprob: float) -> str:
    value = 100 * math.exp(min(0.0, logprob))
    return f"{value:.0f}%" if value >= 9.5 else f"{value:.1f}%" if value >= 0.095 else "<0.1%"


def _most_helped(sample: Sample, against: str) -> str:
    gains = [(token.gain(against), token.text) for token in sample.tokens]
    best = sorted([(g, t) for g, t in gains if g is not None and g >= LEVELS[0]], key=lambda item: -item[0])[:5]
    if not best:
        return "No token gains as much as a quarter of a bit."
    listed = ", ".join(f"<code>{safe(text.strip() or '␣')}</code> {gain:+.1f}" for gain, text in best)
    return f"Most helped, in bits: {listed}"


def _render_neighbor(neighbor: Neighbor, number: int, words: set[tuple[str, ...]]) -> str:
    distance = ""
    if neighbor.distance is not None and math.isfinite(neighbor.distance):
        distance = f'<span class="quiet">distance {neighbor.distance:.3f}</span>'.replace("-", "−")
    continuation = '<p class="quiet">The document ends here.</p>'
    if neighbor.continuation:
        text = _mark_shared(neighbor.continuation, words)
        continuation = f'<p class="passage continuation"><span class="tag">continues</span> {text}</p>'
    return (
        f'<article class="neighbor"><h5><span class="rank">{number}</span> {safe(neighbor.document)} {distance}</h5>'
        f'<p class="passage">{_mark_shared(neighbor.text, words)}</p>{continuation}</article>'
    )


def _word_runs(text: str) -> set[tuple[str, ...]]:
    words = [w.lower() for w in re.findall(r"\w+", text)]
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


def _mark_shared(text: str, runs: set[tuple[str, ...]]) -> str:
    """`text` with every run of SHARED_WORDS or more words that the test chunk has too in <mark>."""
    text = clean(text)
    found = list(re.finditer(r"\w+", text))
    shared = [False] * len(found)
    for i in range(len(found) - SHARED_WORDS + 1):
        if tuple(m.group().lower() for m in found[i : i + SHARED_WORDS]) in runs:
            shared[i : i + SHARED_WORDS] = [True] * SHARED_WORDS
    parts, at, i = [], 0, 0
    while i < len(found):
        if not shared[i]:
            i += 1
            continue
        j = i
        while j + 1 < len(found) and shared[j + 1]:
            j += 1
        parts.append(escape(text[at : found[i].start()]))
        parts.append(f"<mark>{escape(text[found[i].start() : found[j].end()])}</mark>")
        at, i = found[j].end(), j + 1
    return "".join(parts) + escape(text[at:])
