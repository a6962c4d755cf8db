"""Text as it comes: against a naive reading of the whole, for any tokens, characters and stop strings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.inference.stopping import TextStream


class Bytes:
    """A lossless tokenizer of single bytes; id 0 is special and stands for nothing."""

    lossless = True

    def token_bytes(self, token):
        return b"" if token == 0 else bytes([token])

    def decode(self, tokens):
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")


class Words:
    """One that is not lossless: words, joined by spaces, a text's first one without."""

    lossless = False
    words = ("a", "b", "ab", "stop", "st", "op", "é", "")

    def decode(self, tokens):
        return " ".join(self.words[t] for t in tokens)


def naive(tokenizer, tokens, until):
    """(text, stopped, tokens that were read): the text after each token is looked through anew."""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count])
        whole = text.rstrip("\N{REPLACEMENT CHARACTER}")
        places = [whole.find(stop) for stop in until if stop in whole]
        if places:
            return whole[: min(places)], True, count
    return tokenizer.decode(tokens), False, len(tokens)


def streamed(tokenizer, tokens, until):
    stream, parts = TextStream(tokenizer, until), []
    count = 0
    for token in tokens:
        count += 1
        parts.append(stream.add(token))
        shown = "".join(parts)
        assert not any(stop in shown for stop in until)
        if stream.stopped:
            break
    parts.append(stream.finish())
    assert "".join(parts) == stream.text
    return stream.text, stream.stopped, count, parts


TEXTS = st.text(alphabet="abé€😀\n", max_size=24)
STOPS = st.lists(st.text(alphabet="abé😀\n", min_size=1, max_size=4), max_size=3).map(tuple)


@settings(max_examples=300, deadline=None)
@given(TEXTS.filter(bool), STOPS)
def test_bytes(text, until):
    tokens = list(text.encode())
    found = streamed(Bytes(), tokens, until)
    assert found[:3] == naive(Bytes(), tokens, until)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 7), min_size=1, max_size=12), st.sampled_from([(), ("stop",), ("b a", "op"), ("ab",)]))
def test_words(tokens, until):
    found = streamed(Words(), tokens, until)
    assert found[:3] == naive(Words(), tokens, until)


def test_nothing_is_shown_before_it_is_certain():
    *_, parts = streamed(Bytes(), list("xa€yab".encode()), ("abc",))
    # x at once; "a" may begin "abc" until the next byte; the three bytes of the sign come together.
    assert parts == ["x", "", "a", "", "€", "y", "", "", "ab"] or parts == ["x", "", "", "", "a€", "y", "", "", "ab"]


def test_broken_bytes_become_replacement_characters_at_the_end_only():
    stream = TextStream(Bytes())
    assert [stream.add(t) for t in b"a\xe2\x82"] == ["a", "", ""]
    assert stream.finish() == "\N{REPLACEMENT CHARACTER}"


class Runs(Bytes):
    """One that is not lossless: a run of bytes above 127 that is not UTF-8 as a whole is replaced byte by byte, as the
    byte fallback of the `tokenizers` package does, so that a byte takes valid characters before it along."""

    lossless = False

    def decode(self, tokens):
        out, run = "", b""
        for byte in [*tokens, 0]:
            if byte > 127:
                run += bytes([byte])
                continue
            try:
                out += run.decode()
            except UnicodeDecodeError:
                out += "\N{REPLACEMENT CHARACTER}" * len(run)
            out, run = out + (chr(byte) if byte else ""), b""
        return out


def test_text_goes_on_behind_a_character_that_was_shown_and_is_broken_later():
    replaced = "\N{REPLACEMENT CHARACTER}"
    assert Runs().decode(b"a\xe2\x82\xac\xffbcd") == f"a{replaced * 4}bcd"
    text, stopped, _, parts = streamed(Runs(), list(b"a\xe2\x82\xac\xffbcd"), ())
    assert parts[:5] == ["a", "", "", "€", ""]
    assert text == f"a€{replaced * 3}bcd" and not stopped
    assert streamed(Runs(), list(b"a\xe2\x82\xac\xffbcd"), ("cd",))[0] == f"a€{replaced * 3}b"


@pytest.mark.parametrize("until", [("ab", "b"), ("b", "ab")])
def test_the_first_of_several_ends_it(until):
    assert streamed(Bytes(), list(b"xxab"), until)[0] == "xx"
