"""Scores of many texts at once, and the pieces that they are scored in."""

import numpy as np
import pytest
import torch

from retro.config.errors import ConfigError
from retro.inference.language_model import ScoreRequest
from retro.inference.opening import open_language_model
from retro.inference.scored_piece import ScoredPiece, continuation_pieces, rolling_pieces
from tests.eval.workspace import CHUNK, SEQUENCE

TEXT = "Return the mean of all rows in the data, in the order of the index. Parameters: data, limit, fill and axis."


@pytest.fixture(scope="module")
def retro(workspace):
    return open_language_model(workspace.retro, batch=5)[0]


@pytest.fixture(scope="module")
def gpt(workspace):
    return open_language_model(workspace.gpt, batch=5)[0]


def count_rows(lm, monkeypatch):
    """Rows of each pass through the model, from now on."""
    passes = []
    whole = lm.model.hidden_states

    def counted(tokens, *arguments, **options):
        passes.append(tuple(tokens.shape))
        return whole(tokens, *arguments, **options)

    monkeypatch.setattr(lm.model, "hidden_states", counted)
    return passes


def same(one, other):
    return (
        np.allclose(one.token_logprobs, other.token_logprobs, atol=1e-5)
        and one.is_greedy == other.is_greedy
        and one.logprob == pytest.approx(sum(other.token_logprobs), abs=1e-4)
    )


@pytest.mark.parametrize("name", ["retro", "gpt"])
def test_many_are_scored_as_each_alone(request, monkeypatch, name):
    """Of every length, with windows that move, in the order of the requests, in few passes."""
    lm = request.getfixturevalue(name)
    words = TEXT.split()
    requests = [ScoreRequest(" ".join(words[: i % 17]), " " + " ".join(words[i % 5 : i % 11 + 1])) for i in range(14)]
    requests += [
        ScoreRequest("x", " ".join([TEXT] * 2)),
        ScoreRequest(TEXT * 3, " in the order"),
        ScoreRequest("x", ""),
    ]
    requests.append(ScoreRequest((5, 6, 7), tuple(range(5, 40)), first_chunk=CHUNK))
    alone = [lm.loglikelihood([request])[0] for request in requests]
    passes = count_rows(lm, monkeypatch)
    together = lm.loglikelihood(requests)
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert len({score.logprob for score in together}) == len(requests)
    assert max(rows for rows, _ in passes) == 5 and len(passes) < len(requests) / 2
    texts = [" ".join(words[i : 2 * i]) for i in range(9)] + [TEXT * 3]
    alone = [lm.loglikelihood_rolling([text])[0] for text in texts]
    assert all(same(a, b) for a, b in zip(alone, lm.loglikelihood_rolling(texts), strict=True))


def test_candidates_of_one_token_share_what_is_read(retro, monkeypatch):
    """Four letters after one question: one row, and each chunk is searched with once."""
    passes, searched = count_rows(retro, monkeypatch), []
    retrieve = retro.retriever.retrieve
    monkeypatch.setattr(
        retro.retriever, "retrieve", lambda queries, *rest: searched.append(len(queries)) or retrieve(queries, *rest)
    )
    context = tuple(retro.tokenizer.encode(TEXT)[: CHUNK + 3])
    letters = retro.loglikelihood([ScoreRequest(context, (token,)) for token in (5, 6, 7, 8)])
    assert passes == [(1, CHUNK + 3)] and searched == [2]
    with torch.no_grad():
        total = retro.loglikelihood([ScoreRequest(context, (t,)) for t in range(retro.model.config.vocab_size)])
    assert len({score.logprob for score in letters}) == 4
    assert np.logaddexp.reduce([score.logprob for score in total]) == pytest.approx(0.0, abs=1e-4)
    assert sum(score.is_greedy for score in total) == 1
    assert passes[1:] == [(1, CHUNK + 3)]
    # Longer ones have the question's chunks in common, and one that the candidates fill.
    searched.clear()
    retro.loglikelihood([ScoreRequest(context, (token,) * (CHUNK + 1)) for token in (5, 6)])
    assert searched == [4]


def test_few_logits_at_a_time_are_the_same(retro, monkeypatch):
    before = retro.loglikelihood_rolling([TEXT, TEXT[:40]])
    monkeypatch.setattr("retro.inference.scoring._MOST_LOGITS", 3 * retro.model.config.vocab_size)
    after = retro.loglikelihood_rolling([TEXT, TEXT[:40]])
    assert all(same(a, b) for a, b in zip(before, after, strict=True))


def test_pieces_of_a_continuation():
    # 1 + 7 tokens in a window of 6 with M = 4: the last token of a piece is not read, whole chunks are dropped.
    pieces = continuation_pieces([0], [1, 2, 3, 4, 5, 6, 7], 4, 6)
    assert pieces == [
        ScoredPiece((0, 1, 2, 3, 4, 5), 1, 0, (1, 2, 3, 4, 5, 6)),
        ScoredPiece((1, 2, 3, 4, 5, 6), 4, 5, (7,)),
    ]
    assert list(pieces[0].chunk_ends(4)) == [0, 4] and list(pieces[1].chunk_ends(4)) == [3]
    assert continuation_pieces([0, 1, 2], [3], 4, 6, first=4) == [ScoredPiece((0, 1, 2), 4, 2, (3,))]
    assert continuation_pieces([0], [], 4, 6) == []


def test_a_context_longer_than_the_window_keeps_its_end():
    context = list(range(SEQUENCE + 21))
    (piece,) = continuation_pieces(context, [7], CHUNK, SEQUENCE)
    assert piece.tokens == tuple(context[-len(piece.tokens) :]) and SEQUENCE - CHUNK < len(piece.tokens) <= SEQUENCE
    assert piece.first == CHUNK and len(piece.tokens) % CHUNK == 0


def test_rolling_pieces_are_whole_chunks_without_overlap():
    pieces = rolling_pieces(range(10), 2, 5)
    assert pieces == [
        ScoredPiece((0, 1, 2, 3), 2, 0, (1, 2, 3, 4)),
        ScoredPiece((4, 5, 6, 7), 2, 0, (5, 6, 7, 8)),
        ScoredPiece((8,), 2, 0, (9,)),
    ]
    assert rolling_pieces([1], 2, 5) == []


def test_pieces_need_a_token_and_more_than_a_chunk():
    with pytest.raises(ValueError, match="at least one token"):
        continuation_pieces([], [1], CHUNK, SEQUENCE)
    with pytest.raises(ConfigError, match="sequence_length: expected more than one chunk"):
        continuation_pieces([1], [1], CHUNK, CHUNK)
    with pytest.raises(ValueError, match=r"first_chunk: expected 1\.\.16, found 17"):
        continuation_pieces([1], [1], CHUNK, SEQUENCE, 17)
