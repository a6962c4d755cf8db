"""The window that scoring sees."""

import pytest

from retro.config.errors import ConfigError
from retro.inference.window import Window
from tests.eval.workspace import CHUNK, SEQUENCE


def test_the_window_never_exceeds_its_length_and_drops_whole_chunks():
    window = Window(range(2 * CHUNK + 5), CHUNK, 3 * CHUNK)
    assert window.first == 5 and window.neighbors == [None] * 3
    window.neighbors = ["a", "b", "c"]
    for token in range(CHUNK - 5):
        window.append(1000 + token)
        assert window.first == 5
    assert len(window.tokens) == 3 * CHUNK and window.dropped == 0
    window.append(2000)
    assert window.first == CHUNK and window.dropped == 5 and len(window.tokens) == 3 * CHUNK - 4
    assert window.tokens[0] == 5 and window.tokens[-1] == 2000 and window.neighbors == ["b", "c"]
    for token in range(5):
        window.append(token)
    # A chunk was completed, and for lack of room another one dropped.
    assert window.neighbors == ["c", None] and window.dropped == 5 + CHUNK
    assert len(window.tokens) == 2 * CHUNK + 1 and window.span(1) == (CHUNK, 2 * CHUNK)


def test_a_context_longer_than_the_window_keeps_its_end():
    context = list(range(SEQUENCE + 21))
    window = Window(context, CHUNK, SEQUENCE)
    window.fit()
    assert window.tokens == context[-len(window.tokens) :] and SEQUENCE - CHUNK < len(window.tokens) <= SEQUENCE
    assert window.first == CHUNK and len(window.tokens) % CHUNK == 0


def test_windows_need_a_token_and_more_than_a_chunk():
    with pytest.raises(ValueError, match="at least one token"):
        Window([], CHUNK, SEQUENCE)
    with pytest.raises(ConfigError, match="sequence_length: expected more than one chunk"):
        Window([1], CHUNK, CHUNK)
