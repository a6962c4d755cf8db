"""RetroLM behind the LanguageModel protocol: scores against direct forwards, decoding with given evidence."""

import dataclasses

import numpy as np
import pytest
import torch

from retro.config.errors import ArtifactMismatchError, ConfigError
from retro.config.generation import SamplingConfig
from retro.inference.language_model import GenerateRequest, LanguageModel, ScoreRequest
from retro.inference.opening import open_language_model, resolve_device
from retro.inference.retro_lm import RetroLM
from retro.model import RetroModel
from tests.eval.workspace import CHUNK, NEIGHBORS, SEQUENCE

TEXT = "Return the mean of all rows in the data, in the order of the index. Parameters: data, limit, fill and axis."


@pytest.fixture(scope="module")
def retro(workspace):
    return open_language_model(workspace.retro)[0]


@pytest.fixture(scope="module")
def gpt(workspace):
    return open_language_model(workspace.gpt)[0]


def direct_logprobs(lm, tokens, first):
    """Log-probabilities [N, V] with neighbors of every complete chunk, by one forward of the model."""
    neighbors = mask = None
    stops = list(range(first, len(tokens) + 1, CHUNK))
    if lm.retriever is not None and stops:
        rows = [np.array(tokens[max(0, stop - CHUNK) : stop]) for stop in stops]
        ids, _ = lm.retriever.retrieve(rows, NEIGHBORS)
        found, real = lm.database.gather_neighbors(ids[None], lm.tokenizer.pad_id)
        neighbors, mask = torch.from_numpy(found).long(), torch.from_numpy(real)
    with torch.no_grad():
        logits = lm.model(torch.tensor([tokens]), neighbors, mask, first_chunk_length=first).logits[0]
    return torch.log_softmax(logits, -1)


@pytest.mark.parametrize("name", ["retro", "gpt"])
@pytest.mark.parametrize("context", ["", "axis", "Return the sum of all columns"])
def test_loglikelihood_is_that_of_a_right_aligned_context(request, name, context):
    lm = request.getfixturevalue(name)
    continuation = " in the order of"
    score = lm.loglikelihood([ScoreRequest(context, continuation)])[0]
    prompt = [lm.tokenizer.bos_id, *lm.tokenizer.encode(context)]
    answer = lm.tokenizer.encode(continuation)
    expected = direct_logprobs(lm, prompt + answer, (len(prompt) - 1) % CHUNK + 1)
    rows = expected[len(prompt) - 1 : -1]
    values = [float(rows[i, token]) for i, token in enumerate(answer)]
    assert np.allclose(score.token_logprobs, values, atol=1e-5)
    assert score.logprob == pytest.approx(sum(values), abs=1e-4)
    assert score.is_greedy == (rows.argmax(1).tolist() == answer)


def test_a_greedy_continuation_is_recognised(retro):
    done = retro.generate_until([GenerateRequest("the rows", 3, evidence=None)])[0]
    text = done.text
    if retro.tokenizer.encode(text) == list(done.new_tokens):
        assert retro.loglikelihood([ScoreRequest("the rows", text)])[0].is_greedy
    assert not retro.loglikelihood([ScoreRequest("the rows", " zzz")])[0].is_greedy


def test_long_continuations_move_the_window(retro):
    continuation = " ".join([TEXT] * 4)
    tokens = retro.tokenizer.encode(continuation)
    assert len(tokens) > 2 * SEQUENCE
    score = retro.loglikelihood([ScoreRequest("x", continuation)])[0]
    assert len(score.token_logprobs) == len(tokens) and np.isfinite(score.token_logprobs).all()
    short = retro.loglikelihood([ScoreRequest("x", " ".join([TEXT] * 2))])[0]
    assert np.allclose(score.token_logprobs[:SEQUENCE], short.token_logprobs[:SEQUENCE], atol=1e-4)


@pytest.mark.parametrize("name", ["retro", "gpt"])
@pytest.mark.parametrize("repeat", [1, 3])
def test_rolling_windows_are_those_of_pretraining(request, name, repeat):
    lm = request.getfixturevalue(name)
    text = " ".join([TEXT] * repeat)
    tokens = [lm.tokenizer.bos_id, *lm.tokenizer.encode(text), lm.tokenizer.eos_id]
    score = lm.loglikelihood_rolling([text])[0]
    assert len(score.token_logprobs) == len(tokens) - 1
    expected = []
    for start in range(0, len(tokens) - 1, SEQUENCE):
        part = tokens[start : start + SEQUENCE]
        targets = tokens[start + 1 : start + 1 + SEQUENCE]
        logprobs = direct_logprobs(lm, part, min(CHUNK, len(part)))
        expected += [float(logprobs[i, t]) for i, t in enumerate(targets)]
    assert np.allclose(score.token_logprobs, expected, atol=1e-5)


def test_empty_texts(retro):
    assert retro.loglikelihood([ScoreRequest("x", "")])[0].logprob == 0.0
    assert len(retro.loglikelihood_rolling([""])[0].token_logprobs) == 1  # the end of the text


def test_decoding_with_given_evidence_in_batches_equals_one_by_one(retro):
    prompt = tuple(range(5, 5 + 2 * CHUNK))
    requests = [
        GenerateRequest(prompt, 6, evidence=evidence)
        for evidence in [(3, 17), (40,), (), (8, 9), (1, 2), (5, 6), (7, 70), (4, 44), (12, 13)]
    ]
    together = retro.generate_until(requests)
    for request, result in zip(requests, together, strict=True):
        alone = retro.generate_until([request])[0]
        assert alone.new_tokens == result.new_tokens and alone.text == result.text
    assert len({result.new_tokens for result in together}) > 1


@pytest.mark.parametrize("evidence", [(3, 17), ()])
def test_given_evidence_serves_the_last_chunk_of_the_prompt(retro, evidence):
    prompt = tuple(range(5, 5 + CHUNK + 3))
    result = retro.generate_until([GenerateRequest(prompt, 5, evidence=evidence)])[0]
    ids = np.full((1, 2, 2), -1)
    ids[0, 1, : len(evidence)] = evidence
    found, mask = retro.database.gather_neighbors(ids, retro.tokenizer.pad_id)
    tokens = list(prompt)
    for _ in range(len(result.new_tokens)):
        with torch.no_grad():
            logits = retro.model(
                torch.tensor([tokens]), torch.from_numpy(found).long(), torch.from_numpy(mask), first_chunk_length=3
            ).logits[0, -1]
        logits[retro.banned] = -torch.inf
        tokens.append(int(logits.argmax()))
    assert tuple(tokens[len(prompt) :]) == result.new_tokens


def test_given_evidence_can_be_sampled_with(retro):
    prompt = tuple(range(5, 5 + CHUNK))
    warm = [SamplingConfig(temperature=1.0, seed=seed) for seed in (1, 1, 2)]
    results = retro.generate_until([GenerateRequest(prompt, 8, evidence=(3, 17), sampling=s) for s in warm])
    assert results[0].new_tokens == results[1].new_tokens != results[2].new_tokens


def test_results_keep_the_order_of_mixed_requests(retro):
    prompts = [tuple(range(5, 5 + n)) for n in (3, CHUNK, 3, 20)]
    requests = [GenerateRequest(p, 2, evidence=e) for p, e in zip(prompts, [(1,), None, (2,), ()], strict=True)]
    assert [result.prompt_tokens for result in retro.generate_until(requests)] == prompts


def test_it_implements_the_protocol_and_says_who_it_is(retro, gpt):
    assert isinstance(retro, LanguageModel) and isinstance(gpt, LanguageModel)
    assert retro.identity()["retriever"]["searcher"] and gpt.identity()["retriever"] is None
    assert gpt.identity()["num_neighbors"] == 0 and retro.identity()["num_neighbors"] == NEIGHBORS


def test_bf16_gives_nearly_the_same_scores(workspace, retro):
    half, _ = open_language_model(workspace.retro, precision="bf16")
    a, b = (lm.loglikelihood_rolling([TEXT])[0] for lm in (retro, half))
    assert a.token_logprobs != b.token_logprobs
    assert np.allclose(a.token_logprobs, b.token_logprobs, atol=0.5)


def test_what_cannot_be_asked(workspace, retro):
    without = RetroLM(retro.model, retro.tokenizer, window_length=SEQUENCE, num_neighbors=2)
    with pytest.raises(ConfigError, match="need the database"):
        without.generate_until([GenerateRequest("x", 2, evidence=(1,))])
    with pytest.raises(ConfigError, match="cannot be used"):
        resolve_device("nonsense")


def test_a_model_with_fewer_tokens_than_the_tokenizer_is_refused(workspace, retro):
    from retro.model import RetroModel
    from tests.eval.workspace import model_config

    small = RetroModel(model_config(False, retro.tokenizer.vocab_size - 1))
    with pytest.raises(ArtifactMismatchError, match="expected at most the model's"):
        RetroLM(small, retro.tokenizer, window_length=SEQUENCE)


def test_windows_beyond_the_learned_positions_are_refused(workspace):
    lm = open_language_model(workspace.gpt)[0]
    model = RetroModel(dataclasses.replace(lm.model.config, positions="learned", max_positions=40))
    with pytest.raises(ConfigError, match="sequence_length: expected at most the model's 40 learned positions"):
        RetroLM(model, lm.tokenizer, window_length=41)
    assert RetroLM(model, lm.tokenizer, window_length=40).window_length == 40
