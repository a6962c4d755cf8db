"""The engine against generation without a cache: tokens, log-probabilities, provenance; batches, windows, ends."""

import numpy as np
import pytest

from retro.config.errors import ConfigError
from retro.config.generation import SamplingConfig
from retro.inference.decoded_sequence import DecodedSequence
from retro.inference.evidence import document_id
from retro.inference.language_model import GenerateRequest
from retro.inference.opening import open_language_model
from retro.inference.provenance import describe_result, served_positions
from retro.inference.requests import EngineRequest
from retro.retrieval.policy import Custom, Every, Never, Unsure
from tests.eval.workspace import CHUNK, NEIGHBORS, SEQUENCE
from tests.reference.slow_generate import slow_greedy

GREEDY = SamplingConfig()
TEXT = (
    "Return the mean of all rows in the data, in the order of the index. Parameters: data, limit, fill and axis. " * 4
)


@pytest.fixture(scope="module")
def retro(workspace):
    return without_end(open_language_model(workspace.retro)[0])


@pytest.fixture(scope="module")
def gpt(workspace):
    return without_end(open_language_model(workspace.gpt)[0])


def without_end(lm):
    """Texts that do not end by themselves: their lengths are those asked for."""
    lm.banned = sorted({*lm.banned, lm.tokenizer.eos_id})
    return lm


def text_tokens(lm, length, skip=0):
    """A prompt of exactly so many tokens, with words that retrieve something."""
    tokens = lm.tokenizer.encode(TEXT)[skip : skip + length]
    assert len(tokens) == length
    return tuple(tokens)


def run(lm, *requests, slots=None, most_neighbors=0):
    """Finished results, in order."""
    engine = lm.build_engine(slots or len(requests), most_neighbors)
    return [update.finished for update in engine.run(requests)]


def collect(lm, request):
    """(all updates of one request)."""
    return list(lm.stream(request))


@pytest.mark.parametrize("length", [1, 2, 5, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3, 3 * CHUNK + 1])
@pytest.mark.parametrize("every", [0, 1, 2, CHUNK])
def test_tokens_and_probabilities_are_those_of_the_whole_forward_pass(retro, every, length):
    prompt = text_tokens(retro, length)
    policy = Every(every) if every else Never()
    updates = collect(retro, EngineRequest(prompt, CHUNK + 5, GREEDY, policy=policy, logprobs=2))
    result = updates[-1].finished
    wants = (lambda since, _: since >= every) if every else None
    tokens, logprobs, ends = slow_greedy(retro, prompt, CHUNK + 5, wants)
    assert list(result.new_tokens) == tokens
    found = [entry for update in updates for entry in update.logprobs]
    assert np.allclose([entry.logprob for entry in found], logprobs, atol=1e-4)
    # The last retrieval of the reference comes after the last token and serves nothing.
    assert [e.stop - 1 for e in result.evidence] == [end for end in ends if end < length + CHUNK + 4]
    for entry in found:
        assert len(entry.top) == 2 and entry.top[0][1] >= entry.top[1][1]
        assert entry.top[0][1] >= entry.logprob - 1e-9


@pytest.mark.parametrize("every", [0, 1, CHUNK])
def test_prompts_of_every_length_side_by_side(retro, every):
    """1 to 3 M + 1 tokens, more requests than slots: batches of unequal length throughout."""
    prompts = [text_tokens(retro, length) for length in range(1, 3 * CHUNK + 2)]
    policy = Every(every) if every else Never()
    results = run(retro, *(EngineRequest(p, 3 + i % 3, GREEDY, policy=policy) for i, p in enumerate(prompts)), slots=7)
    wants = (lambda since, _: since >= every) if every else None
    for i, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        tokens, _, ends = slow_greedy(retro, prompt, 3 + i % 3, wants)
        assert list(result.new_tokens) == tokens, len(prompt)
        assert [e.stop - 1 for e in result.evidence] == [e for e in ends if e < len(prompt) + len(tokens) - 1]


def test_retrieval_after_improbable_tokens(retro):
    """Where and with what the adaptive policy retrieves is what the reference's own probabilities say."""
    prompt, count = text_tokens(retro, 11), SEQUENCE + CHUNK
    _, logprobs, _ = slow_greedy(retro, prompt, count, None)
    threshold = float(np.exp(np.median(logprobs)))
    result = run(retro, EngineRequest(prompt, count, GREEDY, policy=Unsure(threshold)))[0]
    tokens, _, ends = slow_greedy(retro, prompt, count, lambda _, probability: probability < threshold)
    assert list(result.new_tokens) == tokens
    assert [e.stop - 1 for e in result.evidence] == [e for e in ends if e < len(prompt) + count - 1]
    assert count // 8 < len(ends) < count


@pytest.mark.parametrize("every", [3, CHUNK])
def test_long_texts_move_the_window(retro, every):
    prompt = text_tokens(retro, 7)
    result = run(retro, EngineRequest(prompt, SEQUENCE + 2 * CHUNK, GREEDY, policy=Every(every)))[0]
    tokens, _, ends = slow_greedy(retro, prompt, SEQUENCE + 2 * CHUNK, lambda since, _: since >= every)
    assert list(result.new_tokens) == tokens
    assert [e.stop - 1 for e in result.evidence] == [e for e in ends if e < len(prompt) + len(tokens) - 1]


@pytest.mark.parametrize("window", [CHUNK + 1, CHUNK + 3])
def test_windows_of_little_more_than_a_chunk_keep_what_serves(workspace, retro, window):
    """Whatever is dropped, the last retrieval lies within the window."""
    narrow = without_end(open_language_model(workspace.retro, window_length=window)[0])
    prompt = text_tokens(retro, 7)
    for policy, every in ((Every(), CHUNK), (Every(5), 5)):
        result = run(narrow, EngineRequest(prompt, 4 * CHUNK, GREEDY, policy=policy))[0]
        assert (
            list(result.new_tokens) == slow_greedy(narrow, prompt, 4 * CHUNK, lambda s, _, every=every: s >= every)[0]
        )
    sequence = DecodedSequence(1, EngineRequest(prompt, 1), None, None, window, CHUNK)
    sequence.tokens += [5] * 3 * window
    sequence.drop()
    assert CHUNK <= len(sequence.tokens) - sequence.dropped < window


def test_prompts_longer_than_the_window_keep_their_end(retro):
    prompt = text_tokens(retro, SEQUENCE + 21)
    result = run(retro, EngineRequest(prompt, 5, GREEDY, policy=Every()))[0]
    assert list(result.new_tokens) == slow_greedy(retro, prompt, 5, lambda since, _: since >= CHUNK)[0]
    assert result.evidence[0].start >= 21 + 1 and result.evidence[-1].stop == len(prompt)


def test_a_gpt_and_retrieval_off(retro, gpt):
    prompt = text_tokens(retro, 35)
    off = run(retro, EngineRequest(prompt, 20, GREEDY))[0]
    plain = run(gpt, EngineRequest(prompt, 20, GREEDY, policy=Every()))[0]
    on = run(retro, EngineRequest(prompt, 20, GREEDY, policy=Every()))[0]
    # Untrained models of one seed: without cross-attention RETRO is the GPT.
    assert off.new_tokens == plain.new_tokens != on.new_tokens and off.evidence == plain.evidence == ()


def mixed_requests(lm):
    lengths, policies = [1, 9, CHUNK, 3 * CHUNK + 2, 4, 30], [Every(), Every(1), None, Every(5), Never(), Every(2)]
    return [
        EngineRequest(
            text_tokens(lm, n, skip=i),
            6 + 5 * i,
            GREEDY if i % 2 else SamplingConfig(temperature=1.0, top_p=0.9, seed=i, repetition_penalty=1.2),
            policy=policy,
            num_neighbors=1 if i == 1 else None,
        )
        for i, (n, policy) in enumerate(zip(lengths, policies, strict=True))
    ]


@pytest.mark.parametrize("slots", [1, 2, 6])
def test_results_do_not_depend_on_what_else_is_decoded(retro, slots):
    """Lengths, policies and ends differ: slots are filled, freed and moved in another order each time."""
    requests = mixed_requests(retro)
    alone = [run(retro, request)[0] for request in requests]
    assert run(retro, *requests, slots=slots) == alone
    assert run(retro, *reversed(requests), slots=slots) == alone[::-1]
    assert len({result.new_tokens for result in alone}) == len(requests)


def test_fewer_neighbors_per_request(retro):
    one = run(retro, EngineRequest(text_tokens(retro, 20), 4, GREEDY, policy=Every(), num_neighbors=1))[0]
    assert all(len(chunk.neighbors) <= 1 for chunk in one.evidence) and NEIGHBORS > 1
    both = run(retro, EngineRequest(text_tokens(retro, 20), 4, GREEDY, policy=Every()))[0]
    assert any(len(chunk.neighbors) == 2 for chunk in both.evidence)


def test_requests_may_come_and_go_at_any_time(retro):
    requests = mixed_requests(retro)
    engine = retro.build_engine(2)
    tickets = {engine.submit(requests[0]): 0, engine.submit(requests[5]): 5, engine.submit(requests[3]): 3}
    assert (engine.active, engine.waiting) == (0, 3)
    done = {}
    for step in range(100):
        if step == 2:
            tickets[engine.submit(requests[1])] = 1
        if step == 4:
            gone = next(t for t, i in tickets.items() if i == 5)
            assert engine.cancel(gone) and not engine.cancel(gone)
        if step == 5:
            waiting = engine.submit(requests[2])
            assert engine.cancel(waiting)
        updates = engine.step()
        assert len(updates) == len({u.ticket for u in updates}) <= 2
        done.update({tickets[u.ticket]: u.finished for u in updates if u.finished is not None})
        if not (engine.active or engine.waiting):
            break
    assert sorted(done) == [0, 1, 3] and not engine.cancel(12345)
    assert all(done[i] == run(retro, requests[i])[0] for i in done)


def test_evidence_comes_with_the_first_token_that_it_serves(retro):
    prompt = text_tokens(retro, CHUNK + 3)
    updates = collect(retro, EngineRequest(prompt, 2 * CHUNK, GREEDY, policy=Every(6)))
    made = 0
    for update in updates:
        for chunk in update.evidence:
            assert chunk.stop <= len(prompt) + made  # it ends right before this update's token
            if made:
                assert chunk.stop == len(prompt) + made and made % 6 == 0
            row = np.array([*prompt, *updates[-1].finished.new_tokens][chunk.start : chunk.stop])
            ids, distances = retro.retriever.retrieve([row], NEIGHBORS)
            found = [(int(i), float(d)) for i, d in zip(ids[0], distances[0], strict=True) if i >= 0]
            assert [(n.chunk, n.distance) for n in chunk.neighbors] == found
            assert all(n.document == document_id(retro.database, n.chunk) for n in chunk.neighbors)
        made += len(update.tokens)
    result = updates[-1].finished
    assert tuple(chunk for update in updates for chunk in update.evidence) == result.evidence
    served = served_positions(result, CHUNK)
    assert served[0] == (3, 3 + CHUNK) and served[1] == (CHUNK + 3, CHUNK + 9) and served[-1][1] == 3 * CHUNK + 3
    described = describe_result(retro, result)
    assert described["evidence"][1]["served"] == [0, 6] and described["evidence"][0]["served"] == [0, 0]
    assert described["evidence"][1]["served_text"] == retro.tokenizer.decode(result.new_tokens[:6])
    neighbor = described["evidence"][1]["neighbors"][0]
    assert neighbor["text"] and "pkg." in neighbor["document"]


def test_policies(retro):
    prompt = text_tokens(retro, 20)

    def stops(policy):
        result = run(retro, EngineRequest(prompt, 12, SamplingConfig(temperature=1.0, seed=3), policy=policy))[0]
        return [chunk.stop - len(prompt) for chunk in result.evidence if chunk.stop > len(prompt)]

    assert stops(Every(5)) == [5, 10] and stops(Never()) == []
    assert stops(Every(5, prompt=False)) == [1, 6, 11]  # without one for the prompt the first is due at once
    assert stops(Unsure(1.0)) == list(range(1, 12)) and stops(Unsure(1e-12)) == []
    moments = []
    picky = Custom(lambda moment: moments.append(moment) or moment.text.count(" ") >= 2)
    stops(picky)
    assert [m.since for m in moments][:3] == [1, 2, 3] and all(0 < m.probability <= 1 for m in moments)
    assert all(0 <= m.entropy <= np.log(retro.model.config.vocab_size) + 1e-6 for m in moments)
    low = sum(m.probability < 0.01 for m in moments)
    assert low > 0


def test_sampling_by_seed(retro):
    prompt = text_tokens(retro, 10)
    warm = [SamplingConfig(temperature=1.0, top_p=0.9, seed=seed) for seed in (4, 4, 5)]
    a, b, c = run(retro, *(EngineRequest(prompt, 30, s, policy=Every()) for s in warm))
    assert a == b and a.new_tokens != c.new_tokens


def test_ends(retro, monkeypatch):
    text = "data and then the end"
    script = [*retro.tokenizer.encode(text), retro.tokenizer.eos_id]

    def scripted():
        tokens = iter(script)
        monkeypatch.setattr("retro.inference.sampling.Sampler.draw", lambda *_: next(tokens))

    scripted()
    done = retro.generate_until([GenerateRequest("a prompt", 50)])[0]
    assert (done.text, done.stop) == (text, "end") and list(done.new_tokens) == script[:-1]
    assert done.evidence[0].stop == len(done.prompt_tokens)
    scripted()
    done = retro.generate_until([GenerateRequest("a prompt", 50, until=("the", "then"))])[0]
    assert (done.text, done.stop) == ("data and ", "until")
    scripted()
    done = retro.generate_until([GenerateRequest("a prompt", 2)])[0]
    assert done.stop == "length" and len(done.new_tokens) == 2
    scripted()
    updates = collect(retro, EngineRequest((5,), 50, until=("n the",)))
    assert "".join(u.text for u in updates) == updates[-1].finished.text == "data and the"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ()}, "prompt: expected at least one token"),
        ({"prompt": (-1,)}, "prompt: expected token ids 0.."),
        ({"prompt": (10**9,)}, "prompt: expected token ids 0.."),
        ({"max_new_tokens": 0}, "max_new_tokens: expected 1 or more"),
        ({"num_neighbors": NEIGHBORS + 1}, "num_neighbors: expected 1.."),
        ({"evidence": tuple(range(NEIGHBORS + 1))}, "evidence: expected at most"),
        ({"evidence": (10**9,)}, "evidence: expected chunks 0.."),
    ],
)
def test_requests_that_cannot_be_decoded(retro, changes, message):
    engine = retro.build_engine(1)
    with pytest.raises(ValueError, match=message):
        engine.submit(EngineRequest(**({"prompt": (5,), "max_new_tokens": 3} | changes)))
    assert engine.step() == []


def test_neighbors_of_a_request_to_an_engine_that_retrieves_nothing(gpt):
    with pytest.raises(ValueError, match="num_neighbors: nothing is retrieved"):
        gpt.build_engine(1).submit(EngineRequest((5,), 3, num_neighbors=1))


def test_windows_of_less_than_a_chunk_are_refused(retro):
    short = open_language_model.__globals__["RetroLM"](retro.model, retro.tokenizer, window_length=CHUNK)
    with pytest.raises(ConfigError, match="sequence_length: expected more than one chunk"):
        short.build_engine(1)


@pytest.mark.parametrize(
    ("owner", "name"), [("_state", "prefill_batch"), ("_state", "decode"), ("_retriever", "retrieve")]
)
def test_an_engine_that_failed_in_the_middle_of_a_step_says_so(retro, monkeypatch, owner, name):
    """It would go on with a token, or with neighbors, missing."""
    engine = retro.build_engine(2)
    engine.submit(EngineRequest((5, 6, 7), 20, policy=Every(1)))

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    if name == "decode":
        engine.step()
    with monkeypatch.context() as patched:
        patched.setattr(getattr(engine, owner), name, broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.step()
    with pytest.raises(RuntimeError, match="a step failed, and what it decoded is lost; build another"):
        engine.step()
    assert run(retro, EngineRequest((5, 6, 7), 2, policy=Every(1)))[0].stop == "length"
