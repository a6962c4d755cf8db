"""The harness's model on our checkpoints: the numbers of its own Hugging Face model, and retrieval for RETRO."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from retro.config.errors import ConfigError
from tests.eval.workspace import CHUNK, NEIGHBORS, SEQUENCE, documentation

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")

from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.api.registry import get_model

from retro.eval.harness.model import RetroHarnessLM

TEXT = "Return the mean of all rows in the data, in the order of the index. Parameters: data, limit, fill and axis.\n"
PAIRS = [
    ("", "Return the mean of all"),
    ("Return the sum of all columns in", " the data"),
    ("Question: which axis? ", "the rows"),  # the space belongs to the answer
    ("data : Ser", "ies"),  # a border inside of a word
    ("  ", "hello"),
    (TEXT * 6, " Stop after so many rows"),  # longer than the window
    ("x", " rows" * (SEQUENCE - 2)),  # an answer as long as it can be
    ("na\u00efve \u4f60\u597d", " \U0001f600"),
]
#: Nothing periodic: the harness takes windows with the same tokens for one, of whatever continuations.
LONG = " ".join(record["text"] for record in documentation(5))
TEXTS = ["Return the mean", TEXT, LONG[:400], LONG, "\u4f60\u597d \U0001f600"]
PROMPTS = [
    ("Return the", {"until": ["\n"], "max_gen_toks": 24}),
    ("Return the sum of all", {"until": [" data", "\n\n"], "max_new_tokens": 12, "do_sample": False}),
    (TEXT * 5, {"until": "the", "max_gen_toks": 16, "temperature": 0.0}),
    ("data : int\n    The", {"max_gen_toks": 40}),
]


#: Theirs are sums in float32, of up to two thousand nats.
CLOSE = {"rtol": 2e-7, "atol": 1e-4}


def instances(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def gpt(runs):
    return RetroHarnessLM(checkpoint=str(runs.gpt), batch_size=3)


@pytest.fixture(scope="module")
def retro(runs):
    return RetroHarnessLM(checkpoint=str(runs.retro), batch_size=3)


@pytest.fixture(scope="module")
def theirs(runs):
    pytest.importorskip("transformers", reason="the harness's own model needs transformers")
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(runs.exported), device="cpu", dtype="float32", batch_size=2)


def test_scores_are_those_of_the_exported_gpt(gpt, theirs):
    assert gpt.max_length == theirs.max_length == SEQUENCE
    ours = gpt.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    expected = theirs.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    assert np.allclose([score for score, _ in ours], [score for score, _ in expected], **CLOSE)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in expected]


def test_greedy_answers_are_recognised_as_theirs_are(gpt, theirs):
    contexts = ["Return the", "data : int\n    The", "Return the mean of all"]
    written = gpt.generate_until(instances("generate_until", [(c, {"max_gen_toks": 3}) for c in contexts]))
    pairs = list(zip(contexts, written, strict=True))
    for model in (gpt, theirs):
        answers = model.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
        assert [greedy for _, greedy in answers] == [True] * 3


@pytest.mark.parametrize("begin", [True, False])
def test_whole_texts_are_scored_as_the_exported_gpt_does(runs, begin):
    from lm_eval.models.huggingface import HFLM

    options = {"batch_size": 2, "add_bos_token": begin}
    ours = RetroHarnessLM(checkpoint=str(runs.gpt), **options)
    theirs = HFLM(pretrained=str(runs.exported), device="cpu", dtype="float32", **options)
    asked = instances("loglikelihood_rolling", [(text,) for text in TEXTS])
    found = ours.loglikelihood_rolling(asked, disable_tqdm=True)
    assert np.allclose(found, theirs.loglikelihood_rolling(asked, disable_tqdm=True), **CLOSE)


def test_greedy_text_is_that_of_the_exported_gpt(gpt, theirs):
    ours = gpt.generate_until(instances("generate_until", PROMPTS), disable_tqdm=True)
    assert ours == theirs.generate_until(instances("generate_until", PROMPTS), disable_tqdm=True)
    assert all(len(text) > 1 for text in ours[:2]) and "\ufffd" not in "".join(ours)


def test_the_order_and_the_batch_change_nothing(runs, retro):
    alone = RetroHarnessLM(checkpoint=str(runs.retro), batch_size=1)
    for method, arguments in (
        ("loglikelihood", PAIRS),
        ("loglikelihood_rolling", [(text,) for text in TEXTS]),
        ("generate_until", PROMPTS),
    ):
        together = getattr(retro, method)(instances(method, arguments), disable_tqdm=True)
        for request, found in zip(instances(method, arguments), together, strict=True):
            one = getattr(alone, method)([request], disable_tqdm=True)[0]
            if method == "generate_until":
                assert found == one
            else:
                assert np.allclose(found, one, **CLOSE)


def test_the_question_ends_a_chunk_and_the_answer_begins_one(retro, monkeypatch):
    """Against a forward pass written out, and by what is searched for: never a token of a short answer."""
    context, answer = "Return the mean of all rows in the index.\nQuestion: which?\nAnswer:", " the labels"
    queries = []
    search = retro.lm.retriever.retrieve

    def watched(rows, count, *more):
        queries.extend(np.asarray(row).tolist() for row in rows)
        return search(rows, count, *more)

    monkeypatch.setattr(retro.lm.retriever, "retrieve", watched)
    found = retro.loglikelihood(instances("loglikelihood", [(context, answer)]), disable_tqdm=True)[0]
    prompt = retro.tok_encode(context)
    tokens = retro.tok_encode(context + answer)
    assert tokens[: len(prompt)] == prompt and CHUNK < len(prompt) < SEQUENCE - CHUNK
    assert 1 <= len(tokens) - len(prompt) < CHUNK
    first = (len(prompt) - 1) % CHUNK + 1
    stops = range(first, len(prompt) + 1, CHUNK)
    expected_queries = [prompt[max(0, stop - CHUNK) : stop] for stop in stops]
    assert {tuple(q) for q in queries} == {tuple(q) for q in expected_queries}
    assert tuple(prompt[-CHUNK:]) in {tuple(q) for q in queries}

    ids, _ = search([np.array(query) for query in expected_queries], NEIGHBORS)
    neighbors, mask = retro.lm.database.gather_neighbors(ids[None], retro.lm.tokenizer.pad_id)
    with torch.no_grad():
        logits = retro.lm.model(
            torch.tensor([tokens]), torch.from_numpy(neighbors).long(), torch.from_numpy(mask), first_chunk_length=first
        ).logits[0]
    rows = torch.log_softmax(logits, -1)[len(prompt) - 1 : -1]
    score = float(rows.gather(1, torch.tensor(tokens[len(prompt) :])[:, None]).sum())
    assert found[0] == pytest.approx(score, abs=1e-4)


def test_retrieval_can_be_left_out(runs, retro):
    off = RetroHarnessLM(checkpoint=str(runs.retro), retrieve=False)
    pairs = instances("loglikelihood", PAIRS)
    with_it, without = (m.loglikelihood(pairs, disable_tqdm=True) for m in (retro, off))
    assert all(abs(a - b) > 1e-3 for (a, _), (b, _) in zip(with_it[1:3], without[1:3], strict=True))
    assert off.get_model_info()["model_identity"]["retrieve"] == "off"
    context, answer = PAIRS[1]
    prompt, tokens = off.tok_encode(context), off.tok_encode(context + answer)
    with torch.no_grad():
        rows = torch.log_softmax(off.lm.model(torch.tensor([tokens])).logits[0], -1)[len(prompt) - 1 : -1]
    expected = float(rows.gather(1, torch.tensor(tokens[len(prompt) :])[:, None]).sum())
    assert without[1][0] == pytest.approx(expected, abs=1e-4)


def test_whole_texts_retrieve_from_the_second_chunk_on(runs, retro):
    off = RetroHarnessLM(checkpoint=str(runs.retro), retrieve="off")
    short = " ".join(["rows"] * (CHUNK - 4))
    assert len(retro.tok_encode(short)) < CHUNK < len(retro.tok_encode(TEXT))
    asked = instances("loglikelihood_rolling", [(short,), (TEXT,)])
    on, without = (m.loglikelihood_rolling(asked, disable_tqdm=True) for m in (retro, off))
    assert on[0] == pytest.approx(without[0], abs=1e-4) and abs(on[1] - without[1]) > 1e-3


def test_a_draw_depends_on_the_seed_and_the_request(retro):
    asked = instances("generate_until", [("Return", {"temperature": 1.5, "max_gen_toks": 12, "do_sample": True})] * 3)
    torch.manual_seed(1)
    first = retro.generate_until(asked, disable_tqdm=True)
    assert first == retro.generate_until(asked, disable_tqdm=True) and len(set(first)) > 1
    torch.manual_seed(2)
    assert retro.generate_until(asked, disable_tqdm=True) != first


def test_answers_come_from_the_cache(gpt, tmp_path):
    cached = CachingLM(gpt, str(tmp_path / "answers.db"))
    asked = [("loglikelihood", PAIRS), ("loglikelihood_rolling", [(TEXT,)]), ("generate_until", PROMPTS)]
    before = [getattr(cached, kind)(instances(kind, arguments)) for kind, arguments in asked]
    gpt.lm, model = None, gpt.lm
    try:
        again = [getattr(cached, kind)(instances(kind, arguments)) for kind, arguments in asked]
    finally:
        gpt.lm = model
        gpt.set_cache_hook(type(cached.get_cache_hook())(None))
    assert [list(map(tuple, x)) if isinstance(x[0], (list, tuple)) else x for x in again] == before


def test_blocks_cover_everything(runs, monkeypatch):
    monkeypatch.setattr("retro.eval.harness.model._BLOCK_BATCHES", 1)
    model = RetroHarnessLM(checkpoint=str(runs.gpt), batch_size=2)
    pairs = instances("loglikelihood", PAIRS)
    small = model.loglikelihood(pairs, disable_tqdm=True)
    monkeypatch.setattr("retro.eval.harness.model._BLOCK_BATCHES", 16)
    whole = model.loglikelihood(pairs, disable_tqdm=True)
    assert np.allclose([a for a, _ in small], [a for a, _ in whole], **CLOSE)


def test_answers_longer_than_the_window_are_scored_in_parts(retro):
    after = " rows" * (3 * SEQUENCE)
    score, greedy = retro.loglikelihood(instances("loglikelihood", [("x", after)]), disable_tqdm=True)[0]
    assert np.isfinite(score) and score < -SEQUENCE * 0.01 and not greedy


def test_empty_answers_are_certain(gpt):
    pairs = instances("loglikelihood", [("", ""), ("x", "")])
    assert gpt.loglikelihood(pairs, disable_tqdm=True) == [(0.0, True)] * 2
    assert gpt.loglikelihood_rolling([], disable_tqdm=True) == [] == gpt.generate_until([], disable_tqdm=True)


def test_what_the_harness_says_counts_unless_the_model_arguments_do(runs):
    registered = get_model("retro")
    assert registered is RetroHarnessLM
    model = registered.create_from_arg_string(
        f"checkpoint={runs.retro},retrieve=every:4,num_neighbors=1,max_length=40",
        {"batch_size": "auto", "max_batch_size": 5, "device": "cuda:0" if not torch.cuda.is_available() else None},
    )
    assert (model.batch_size, model.max_length, model.lm.batch, model.lm.num_neighbors) == (5, 40, 5, 1)
    again = registered.create_from_arg_obj(
        {"checkpoint": str(runs.gpt), "batch_size": 7}, {"batch_size": 1, "max_batch_size": None, "device": None}
    )
    assert again.batch_size == 7 and again.device.type in ("cpu", "cuda")


def test_the_harness_keeps_its_own_models():
    """It registers them when it is first asked for one, unless there is one already."""
    code = (
        "import retro.eval.harness.model\n"
        "from lm_eval.api.registry import get_model\n"
        "assert get_model('retro').__name__ == 'RetroHarnessLM' and get_model('dummy').__name__ == 'DummyLM'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_model_says_who_it_is(retro, gpt):
    info = retro.get_model_info()
    assert info["model_identity"]["retriever"]["searcher"] and info["model_identity"]["retrieve"] == "on"
    assert gpt.get_model_info()["model_identity"]["retrieve"] == "off"
    assert info["model_num_parameters"] > gpt.get_model_info()["model_num_parameters"] > 10_000
    assert retro.tokenizer_name == retro.lm.tokenizer.fingerprint
    assert retro.tok_decode(retro.tok_encode(TEXT)) == TEXT and retro.eot_token_id == retro.lm.tokenizer.eos_id


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pretrained": "x"}, "pretrained is no longer read: use checkpoint=runs/NAME"),
        ({"chekpoint": "x"}, "unknown key 'chekpoint'; did you mean 'checkpoint'"),
        ({}, "'checkpoint' is required"),
        ({"checkpoint": "GPT", "retrieve": "sometimes"}, "retrieve: expected on, off"),
        ({"checkpoint": "GPT", "num_neighbors": 2}, "nothing is retrieved"),
        ({"checkpoint": "GPT", "retrieve": "every:4"}, "nothing is retrieved"),
        ({"checkpoint": "GPT", "batch_size": "auto:4"}, "batch_size: expected"),
        ({"checkpoint": "GPT", "batch_size": 0}, "batch_size: expected 1 or more"),
        ({"checkpoint": "GPT", "batch_size": 4, "max_batch_size": 8}, "max_batch_size: goes with batch_size auto"),
        ({"checkpoint": "GPT", "max_length": 16}, "max_length: expected more than one chunk of 16 tokens"),
    ],
)
def test_wrong_arguments_are_one_line(runs, options, message):
    options = {name: str(runs.gpt) if value == "GPT" else value for name, value in options.items()}
    with pytest.raises(ConfigError, match=message) as error:
        RetroHarnessLM(**options)
    assert "\n" not in str(error.value)


def test_there_is_no_chat_template(gpt):
    with pytest.raises(ConfigError, match="no chat template"):
        gpt.apply_chat_template([{"role": "user", "content": "x"}])
