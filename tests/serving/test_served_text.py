"""Updates of one request, turned into text, log-probabilities and places of evidence."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from retro.inference.language_model import ChunkEvidence, Generated
from retro.serving.served_text import ChoiceText, join_choices
from tests.serving.fake_engine import ByteTokenizer


@dataclasses.dataclass
class Update:
    tokens: tuple[int, ...]
    text: str
    evidence: tuple[ChunkEvidence, ...] = ()
    finished: Any = None
    logprobs: tuple = ()


def end(stop: str) -> Generated:
    return Generated((), (), "", stop)


def choice_text(prompt: bytes = b"abcdef", **options: Any) -> ChoiceText:
    return ChoiceText(0, list(prompt), ByteTokenizer(), chunk_length=4, describe=lambda evidence: [], **options)


def spans(pieces) -> list[tuple[int, int, int, int]]:
    joined = join_choices([piece for piece in pieces if piece is not None])
    return [tuple(entry.served.model_dump().values()) for entry in joined.retrieved]


def test_retrievals_of_the_prompt_serve_no_new_token():
    text = choice_text()
    evidence = (ChunkEvidence(0, 2, ()), ChunkEvidence(2, 6, ()))
    pieces = [text.feed(Update((120,), "x", evidence)), text.feed(Update((121,), "y", (), end("length")))]
    assert spans(pieces) == [(0, 0, 0, 0), (0, 2, 0, 2)]
    assert [e.query.text for e in pieces[0].retrieved] == ["ab", "cdef"]
    assert pieces[0].retrieved[0].served.token_stop == 0, "it is known at once"


def test_a_retrieval_serves_until_the_next_one():
    text = choice_text()
    pieces = [
        text.feed(Update((120,), "x", (ChunkEvidence(2, 6, ()),))),
        text.feed(Update((121,), "y")),
        text.feed(Update((122,), "z", (ChunkEvidence(4, 8, ()),), end("end"))),
    ]
    assert spans(pieces) == [(0, 2, 0, 2), (2, 3, 2, 3)]
    assert join_choices(pieces).finish_reason == "stop"


def test_a_retrieval_serves_a_chunk_at_most():
    text = choice_text()
    pieces = [text.feed(Update((120,), "x", (ChunkEvidence(2, 6, ()),)))]
    pieces += [text.feed(Update((121,), "y")) for _ in range(5)]
    assert pieces[3].retrieved[0].served.token_stop == 4 and not pieces[4].retrieved
    pieces.append(text.feed(Update((122,), "z", (), end("length"))))
    assert spans(pieces) == [(0, 4, 0, 4)]


def test_a_character_of_several_tokens_is_counted_where_it_ends():
    text = choice_text(b"abcd")
    euro = "€".encode()
    pieces = [
        text.feed(Update((120,), "x", (ChunkEvidence(0, 4, ()),))),
        text.feed(Update((euro[0],), "")),
        text.feed(Update((euro[1],), "", (ChunkEvidence(2, 6, ()),))),
        text.feed(Update((euro[2],), "€", (), end("length"))),
    ]
    assert pieces[1] is None, "there is nothing to show yet"
    assert spans(pieces) == [(0, 2, 0, 1), (2, 4, 1, 2)]


def test_places_behind_a_stop_string_are_cut_back():
    text = choice_text(b"abcd")
    pieces = [
        text.feed(Update((120,), "x", (ChunkEvidence(0, 4, ()),))),
        text.feed(Update((69,), "")),  # E, held back: END may follow
        text.feed(Update((78,), "", (ChunkEvidence(2, 6, ()),))),
        text.feed(Update((68,), "", (), end("until"))),
    ]
    assert join_choices([p for p in pieces if p]).text == "x"
    assert spans(pieces) == [(0, 2, 0, 1), (2, 4, 1, 1)]


def test_bytes_that_are_no_character_are_counted_as_the_text_shows_them():
    """Each broken sequence is one replacement character, and the tokens behind it stand behind it."""
    text = choice_text(b"abcd", top_logprobs=0)
    tokens = [0x61, 0xE2, 0x62, 0x80, 0x80, 0x63, 0xEF, 0xBF, 0xBD, 0x64, 0xF0, 0x9F]
    shown = ["a", "", "\ufffdb", "\ufffd", "\ufffd", "c", "", "", "\ufffd", "d", "", "\ufffd"]
    assert "".join(shown) == bytes(tokens).decode("utf-8", "replace")
    known = SimpleNamespace(logprob=-1.0, top=())
    pieces = []
    for number, (token, new) in enumerate(zip(tokens, shown, strict=True)):
        evidence = (ChunkEvidence(number, number + 4, ()),) if number % 4 == 0 else ()
        last = end("length") if number == len(tokens) - 1 else None
        pieces.append(text.feed(Update((token,), new, evidence, last, (known,))))
    joined = join_choices([piece for piece in pieces if piece is not None])
    # The three bytes of a replacement character that the model spelled itself are one character of three tokens.
    assert joined.logprobs.text_offset == [0, 1, 2, 3, 4, 5, 6, 6, 6, 7, 8, 8]
    assert spans(pieces) == [(0, 4, 0, 4), (4, 8, 4, 6), (8, 12, 6, 9)]


def test_an_empty_continuation_is_a_choice_all_the_same():
    text = choice_text(echo="abcdef")
    piece = text.feed(Update((), "", (ChunkEvidence(2, 6, ()),), end("end")))
    assert piece.text == "abcdef" and piece.finish_reason == "stop"
    assert spans([piece]) == [(0, 0, 6, 6)]


def test_texts_of_tokens_are_told_apart():
    text = choice_text()
    assert [text.token_text(token) for token in (97, 0xE2, 256)] == ["a", "bytes:\\xe2", "token:256"]
