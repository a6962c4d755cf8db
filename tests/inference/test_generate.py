"""Generation: windows, sampling, retrieval at every chunk, provenance, causality."""

import numpy as np
import pytest
import torch

from retro.config.errors import ConfigError
from retro.config.evaluation import SamplingConfig
from retro.inference.evidence import document_id
from retro.inference.generate import Step, Window, generate_tokens, next_logits, sample
from retro.inference.language_model import ChunkEvidence, GenerateRequest
from retro.inference.retro_lm import open_language_model
from tests.eval.workspace import CHUNK, NEIGHBORS, SEQUENCE

GREEDY = SamplingConfig()
TEXT = (
    "Return the mean of all rows in the data, in the order of the index. Parameters: data, limit, fill and axis. " * 4
)


def text_tokens(lm, length):
    """A prompt of exactly so many tokens, with words that retrieve something."""
    tokens = lm.tokenizer.encode(TEXT)[:length]
    assert len(tokens) == length
    return tokens


@pytest.fixture(scope="module")
def retro(workspace):
    return open_language_model(workspace.retro)[0]


@pytest.fixture(scope="module")
def gpt(workspace):
    return open_language_model(workspace.gpt)[0]


def run(lm, prompt, count, sampling=GREEDY, retrieval=True):
    """(new tokens, evidence) without stopping at the end of the text."""
    tokens, evidence = [], []
    evidence_source = lm.evidence if retrieval else None
    for item in generate_tokens(
        lm.model, prompt, window_length=lm.window_length, sampling=sampling, evidence=evidence_source
    ):
        if isinstance(item, ChunkEvidence):
            evidence.append(item)
            continue
        if item.evidence is not None:
            evidence.append(item.evidence)
        tokens.append(item.token)
        if len(tokens) == count:
            return tokens, evidence
    raise AssertionError("the stream has no end")


@pytest.mark.parametrize("length", [1, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_the_prompt_ends_a_chunk_and_every_further_chunk_is_retrieved_with(retro, length):
    prompt = text_tokens(retro, length)
    tokens, evidence = run(retro, prompt, 2 * CHUNK + 1)
    everything = prompt + tokens
    assert len(tokens) == 2 * CHUNK + 1
    first = (length - 1) % CHUNK + 1
    stops = list(range(first, len(everything), CHUNK))
    assert [e.stop for e in evidence] == stops and length in stops
    assert [e.start for e in evidence] == [max(0, stop - CHUNK) for stop in stops]
    assert length < 5 or evidence[stops.index(length)].neighbors
    for chunk in evidence:
        row = np.array(everything[chunk.start : chunk.stop])
        ids, distances = retro.retriever.retrieve([row], NEIGHBORS)
        found = [(int(i), float(d)) for i, d in zip(ids[0], distances[0], strict=True) if i >= 0]
        assert [(n.chunk, n.distance) for n in chunk.neighbors] == found
        for neighbor in chunk.neighbors:
            assert neighbor.document == document_id(retro.database, neighbor.chunk) and "pkg." in neighbor.document


def test_each_token_is_what_a_direct_forward_predicts(retro):
    prompt = text_tokens(retro, 22)
    tokens, evidence = run(retro, prompt, CHUNK + 4)
    everything = prompt + tokens
    first = (len(prompt) - 1) % CHUNK + 1
    ids = np.full((1, len(evidence), NEIGHBORS), -1)
    for row, chunk in enumerate(evidence):
        for k, neighbor in enumerate(chunk.neighbors):
            ids[0, row, k] = neighbor.chunk
    found, mask = retro.database.gather_neighbors(ids, retro.tokenizer.pad_id)
    with torch.no_grad():
        logits = retro.model(
            torch.tensor([everything]),
            torch.from_numpy(found).long(),
            torch.from_numpy(mask),
            first_chunk_length=first,
        ).logits[0]
    # Later tokens and later neighbors change nothing before them.
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == tokens


def test_evidence_of_the_prompt_changes_the_first_token(retro):
    window = Window(text_tokens(retro, 5), CHUNK, SEQUENCE)
    retro.evidence.retrieve(window)
    neighbors, mask = retro.evidence.neighbor_tokens(window, torch.device("cpu"))
    tokens = torch.tensor([window.tokens])
    with_evidence = next_logits(retro.model, tokens, neighbors, mask, window.first)
    without = next_logits(retro.model, tokens, None, None, window.first)
    assert not torch.allclose(with_evidence, without)


def test_generation_is_deterministic_by_seed(retro):
    prompt = text_tokens(retro, 10)
    warm = SamplingConfig(temperature=1.0, top_p=0.9, seed=4)
    first, evidence = run(retro, prompt, 40, warm)
    assert (first, evidence) == run(retro, prompt, 40, warm)
    assert first != run(retro, prompt, 40, SamplingConfig(temperature=1.0, top_p=0.9, seed=5))[0]
    assert run(retro, prompt, 10)[0] == run(retro, prompt, 10)[0]


def test_retrieval_off_is_the_model_without_neighbors_and_a_gpt_retrieves_nothing(retro, gpt):
    prompt = text_tokens(retro, 35)
    off, evidence = run(retro, prompt, 20, retrieval=False)
    plain, nothing = run(gpt, prompt, 20)
    # Untrained models of one seed: without cross-attention RETRO is the GPT.
    assert off == plain and evidence == nothing == [] and off != run(retro, prompt, 20)[0]


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


def test_chunk_borders_do_not_move_when_the_window_does(retro):
    prompt = text_tokens(retro, 4)
    _, evidence = run(retro, prompt, 2 * SEQUENCE)
    assert [e.stop for e in evidence] == list(range(4, 4 + 2 * SEQUENCE, CHUNK))
    assert all(e.stop - e.start == CHUNK for e in evidence[1:])


def test_a_prompt_longer_than_the_window_keeps_its_end(retro):
    prompt = text_tokens(retro, SEQUENCE + 21)
    window = Window(prompt, CHUNK, SEQUENCE)
    window.fit()
    assert window.tokens == prompt[-len(window.tokens) :] and SEQUENCE - CHUNK < len(window.tokens) <= SEQUENCE
    assert window.first == CHUNK and len(window.tokens) % CHUNK == 0
    tokens, evidence = run(retro, prompt, 3)
    assert len(tokens) == 3 and evidence[-1].stop == len(prompt)


def test_windows_need_a_token_and_more_than_a_chunk():
    with pytest.raises(ValueError, match="at least one token"):
        Window([], CHUNK, SEQUENCE)
    with pytest.raises(ConfigError, match="sequence_length: expected more than one chunk"):
        Window([1], CHUNK, CHUNK)


def draws(logits, sampling, count=200, banned=()):
    generator = torch.Generator().manual_seed(0)
    return [sample(logits, sampling, generator, banned) for _ in range(count)]


def test_sampling():
    logits = torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1]))
    assert set(draws(logits, GREEDY)) == {1} and set(draws(logits, GREEDY, banned=[1])) == {2}
    assert set(draws(logits, SamplingConfig(temperature=1.0))) == {0, 1, 2, 3}
    assert set(draws(logits, SamplingConfig(temperature=1.0, top_k=2))) == {1, 2}
    assert set(draws(logits, SamplingConfig(temperature=1.0, top_k=1))) == {1}
    # 0.5 is less than 0.6, with 0.3 it is more: two tokens.
    assert set(draws(logits, SamplingConfig(temperature=1.0, top_p=0.6))) == {1, 2}
    assert set(draws(logits, SamplingConfig(temperature=1.0, top_p=0.4))) == {1}
    assert set(draws(logits, SamplingConfig(temperature=1.0), banned=[1, 2])) == {0, 3}
    hot = draws(logits, SamplingConfig(temperature=3.0), 4000)
    expected = torch.softmax(logits / 3, 0)
    assert abs(hot.count(1) / 4000 - float(expected[1])) < 0.03
    assert torch.equal(logits, torch.log(torch.tensor([0.1, 0.5, 0.3, 0.1])))  # the caller's logits stay


def test_stream_stops_at_the_end_of_the_text_and_never_writes_special_tokens(retro, monkeypatch):
    eos = retro.tokenizer.eos_id
    script = iter([7, 8, eos, 9])
    monkeypatch.setattr("retro.inference.generate.sample", lambda *_: next(script))
    steps = [i for i in retro.stream([5, 6], 10, GREEDY) if isinstance(i, Step)]
    assert [step.token for step in steps] == [7, 8, eos]
    assert retro.tokenizer.bos_id in retro._banned and retro.tokenizer.pad_id in retro._banned
    assert eos not in retro._banned


def test_generate_until(retro, monkeypatch):
    text = "data and then the end"
    script = [*retro.tokenizer.encode(text), retro.tokenizer.eos_id]
    tokens = iter(script)
    monkeypatch.setattr("retro.inference.generate.sample", lambda *_: next(tokens))
    done = retro.generate_until([GenerateRequest("a prompt", 50)])[0]
    assert (done.text, done.stop) == (text, "end") and list(done.new_tokens) == script[:-1]
    assert done.evidence[0].stop == len(done.prompt_tokens)
    tokens = iter(script)
    done = retro.generate_until([GenerateRequest("a prompt", 50, until=("the", "then"))])[0]
    assert (done.text, done.stop) == ("data and ", "until")
    tokens = iter(script)
    done = retro.generate_until([GenerateRequest("a prompt", 2)])[0]
    assert done.stop == "length" and len(done.new_tokens) == 2
