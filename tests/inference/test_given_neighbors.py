"""Requests that bring their neighbors as tokens, against the whole forward pass; log-probabilities of the draws."""

import numpy as np
import pytest
import torch

from retro.config.generation import SamplingConfig
from retro.inference.given_neighbors import check_neighbors, lay_out_neighbors
from retro.inference.language_model import GenerateRequest
from retro.inference.opening import open_language_model
from retro.inference.requests import EngineRequest
from retro.retrieval.policy import Every
from tests.eval.workspace import CHUNK, SEQUENCE

TEXT = "Return the mean of all rows in the data, in the order of the index. Parameters: data, limit, fill and axis. "


@pytest.fixture(scope="module")
def retro(workspace):
    return without_end(open_language_model(workspace.retro)[0])


@pytest.fixture(scope="module")
def gpt(workspace):
    return without_end(open_language_model(workspace.gpt)[0])


def without_end(lm):
    lm.banned = sorted({*lm.banned, lm.tokenizer.eos_id})
    return lm


def passages(lm, *lengths):
    """Token ids of passages of these lengths, each of other text."""
    tokens = lm.tokenizer.encode(TEXT * 4)
    return tuple(tuple(tokens[7 * i : 7 * i + length]) for i, length in enumerate(lengths))


def slow(lm, prompt, neighbors, count):
    """(tokens, log-probabilities), greedy, with the whole window through the model for each token: the neighbors come
    with the prompt's last token and with each M-th one after it."""
    tokens, out, ends = list(prompt), [], [len(prompt) - 1]
    longest = max(map(len, neighbors))
    ids, mask = torch.zeros(len(neighbors), longest, dtype=torch.int64), torch.zeros(len(neighbors), longest).bool()
    for row, content in enumerate(neighbors):
        ids[row, : len(content)], mask[row, : len(content)] = torch.tensor(content), True
    dropped = 0
    for _ in range(count):
        if len(tokens) - 1 - ends[-1] >= CHUNK:
            ends.append(len(tokens) - 1)
        if len(tokens) - dropped > lm.window_length:
            dropped = len(tokens) - max(CHUNK, lm.window_length * 3 // 4)
        seen = [end - dropped for end in ends if end >= dropped]
        shape = (1, len(seen), *ids.shape)
        with torch.no_grad():
            logits = lm.model(
                torch.tensor([tokens[dropped:]]),
                ids.expand(shape),
                mask.expand(shape),
                chunk_ends_BL=torch.tensor([seen]),
            ).logits[0, -1]
        logprobs = torch.log_softmax(logits.double(), 0)
        logits[lm.banned] = -torch.inf
        tokens.append(int(logits.argmax()))
        out.append(float(logprobs[tokens[-1]]))
    return tokens[len(prompt) :], out


@pytest.mark.parametrize("lengths", [(5,), (2 * CHUNK, 1), (5 * CHUNK, 30, 3, 1)])
def test_given_tokens_serve_the_whole_answer(retro, lengths):
    """Beyond a chunk too, beyond the window too, and whatever else is decoded; neighbors longer than 2 M and more than
    are retrieved."""
    neighbors = passages(retro, *lengths)
    prompts = [tuple(retro.tokenizer.encode(TEXT * 3)[:n]) for n in (1, CHUNK, CHUNK + 5)]
    # The window moves once, for one of the cases: the reference is slow.
    counts = [SEQUENCE + 3 if len(lengths) == 2 else CHUNK + 2, CHUNK + 3, 4]
    requests = [
        GenerateRequest(prompt, count, neighbors=given)
        for prompt, count in zip(prompts, counts, strict=True)
        for given in (neighbors, neighbors[:1])
    ]
    results = retro.generate_until(requests)
    for request, result in zip(requests, results, strict=True):
        tokens, logprobs = slow(retro, request.prompt, request.neighbors, request.max_new_tokens)
        assert list(result.new_tokens) == tokens and result.evidence == ()
        assert np.allclose(result.token_logprobs, logprobs, atol=1e-4)
    streamed = list(retro.stream(EngineRequest(prompts[0], CHUNK + 2, neighbors=neighbors)))[-1].finished
    assert streamed.new_tokens == results[0].new_tokens[: CHUNK + 2]


def test_tokens_of_chunks_are_their_evidence(retro):
    """Given as tokens or as the ids of database chunks: one function."""
    prompt = tuple(range(5, 5 + CHUNK + 3))
    tokens, mask = retro.database.gather_neighbors(np.array([3, 17]), retro.tokenizer.pad_id)
    neighbors = tuple(tuple(row[real].tolist()) for row, real in zip(tokens, mask, strict=True))
    by_id, by_tokens, more = retro.generate_until(
        [
            GenerateRequest(prompt, 40, evidence=(3, 17)),
            GenerateRequest(prompt, CHUNK, neighbors=neighbors),
            GenerateRequest(prompt, 40, neighbors=neighbors),
        ]
    )
    assert by_id.new_tokens == by_tokens.new_tokens == more.new_tokens[:CHUNK]
    assert len(by_id.new_tokens) == CHUNK and len(more.new_tokens) == 40


def test_no_neighbors_are_none_and_the_policy_is_not_asked(retro, gpt):
    prompt = tuple(range(5, 30))
    none, given = retro.generate_until(
        [
            GenerateRequest(prompt, 40, neighbors=(), policy=Every(1)),
            GenerateRequest(prompt, 40, neighbors=passages(retro, 20), policy=Every(1)),
        ]
    )
    plain = gpt.generate_until([GenerateRequest(prompt, 40, neighbors=passages(gpt, 20))])[0]
    # Untrained models of one seed: without cross-attention RETRO is the GPT.
    assert none.new_tokens == plain.new_tokens != given.new_tokens and none.evidence == given.evidence == ()


def test_probabilities_are_those_before_temperature_and_cuts(retro, monkeypatch):
    sampling = SamplingConfig(temperature=2.0, top_p=0.9, repetition_penalty=1.3, seed=1)
    warm, greedy = retro.generate_until(
        [
            GenerateRequest("the rows", 6, neighbors=(), sampling=sampling),
            GenerateRequest("the rows", 6, neighbors=()),
        ]
    )
    for result in (warm, greedy):
        tokens = [*result.prompt_tokens, *result.new_tokens]
        with torch.no_grad():
            logprobs = torch.log_softmax(retro.model(torch.tensor([tokens])).logits[0].double(), -1)
        expected = [float(logprobs[i - 1, tokens[i]]) for i in range(len(result.prompt_tokens), len(tokens))]
        assert np.allclose(result.token_logprobs, expected, atol=1e-5)
    assert warm.new_tokens != greedy.new_tokens and warm.seconds > 0 and greedy.seconds > 0
    script = iter([*retro.tokenizer.encode("the"), retro.tokenizer.eos_id])
    monkeypatch.setattr("retro.inference.sampling.Sampler.draw", lambda *_: next(script))
    ended = retro.generate_until([GenerateRequest("the rows", 50, neighbors=())])[0]
    assert ended.stop == "end" and len(ended.token_logprobs) == len(ended.new_tokens) + 1


def test_time_is_shared_out_among_the_requests(retro, monkeypatch):
    """The clock goes on by one at each look: a step's time is divided among those that it decodes, prompts apart."""
    ticks = iter(range(1000))
    monkeypatch.setattr("retro.inference.engine.time.perf_counter", lambda: float(next(ticks)))
    requests = [GenerateRequest((5,), count, neighbors=()) for count in (1, 2, 3)]
    seconds = [result.seconds for result in retro.generate_until(requests)]
    # Three prompts in one second, then a second for two of them, then one for the last.
    assert seconds == pytest.approx([1 / 3, 1 / 3 + 1 / 2, 1 / 3 + 1 / 2 + 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbors": ((5,),) * 3}, "neighbors: expected at most 2, found 3"),
        ({"neighbors": ((5,), ())}, r"neighbors\[1\]: expected 1..32 tokens, found 0"),
        ({"neighbors": ((5,) * 33,)}, r"neighbors\[0\]: expected 1..32 tokens, found 33"),
        ({"neighbors": ((-1,),)}, r"neighbors\[0\]: expected token ids 0.."),
        ({"neighbors": ((5,),), "evidence": (1,)}, "neighbors: the request brings evidence already"),
    ],
)
def test_neighbors_that_cannot_serve(retro, changes, message):
    engine = retro.build_engine(1)
    with pytest.raises(ValueError, match=message):
        engine.submit(EngineRequest((5,), 3, **changes))
    assert engine.step() == []


def test_layout_of_ids_and_tokens_side_by_side(retro):
    rows = [np.array([3, -1]), None, ((7, 8, 9),), ((1,) * 40, (2,))]
    tokens, mask = lay_out_neighbors(rows, 2, retro.database, pad_id=0)
    gathered, real = retro.database.gather_neighbors(np.array([3, -1]), 0)
    assert tokens.shape == mask.shape == (4, 2, 40)
    assert np.array_equal(tokens[0, :, : 2 * CHUNK][real], gathered[real]) and not mask[0, 1].any()
    assert not mask[1].any() and mask.sum(2).tolist() == [[real.sum(), 0], [0, 0], [3, 0], [40, 1]]
    assert tokens[2, 0, :3].tolist() == [7, 8, 9] and not tokens[2, 1].any()
    only, _ = lay_out_neighbors([((4,),)], 3, None, pad_id=0)
    assert only.shape == (1, 3, 1)
    check_neighbors((), 0, 5, 10)
