"""Fitted rules in generation: what comes out is exactly the text without retrieval, or exactly the one with it."""

import json
import math

import pytest

from retro.artifacts.retrieval_rule import ConfidenceRule, PopularityRule, RuleArms, confidence
from retro.cli.main import main
from retro.config.errors import ConfigError
from retro.config.generation import SamplingConfig
from retro.inference.opening import open_language_model
from retro.inference.requests import EngineRequest
from retro.retrieval.policy import Every, Never
from retro.retrieval.rule_policy import IfUnsure, rule_policy

ARMS = RuleArms("closed_book", "retro")
PROMPTS = ["the sum of", "Return the mean of all rows", "x", "Parameters: data, limit, fill, axis of the rows", "a b"]
POPULARITY = PopularityRule({"axis": math.log(100), "mean": -math.inf}, math.inf, False, ARMS)


@pytest.fixture(scope="module")
def lm(workspace):
    return open_language_model(workspace.retro)[0]


def requests(lm, policy, **fields):
    settings = {"max_new_tokens": 12, "sampling": SamplingConfig(temperature=1.0, seed=3), **fields}
    return [EngineRequest(lm.prompt_tokens(prompt), policy=policy, **settings) for prompt in PROMPTS]


def decode(lm, wanted, slots):
    return [update.finished for update in lm.build_engine(slots).run(wanted)]


def middle(lm, tokens, **fields):
    """A threshold that some prompts' answers are below and others above, and the confidences."""
    found = [confidence(r.token_logprobs[:tokens], "mean") for r in decode(lm, requests(lm, Never(), **fields), 5)]
    ordered = sorted(found)
    return (ordered[1] + ordered[2]) / 2, found


@pytest.mark.parametrize("slots", [1, 2, 5])
@pytest.mark.parametrize("tokens", [1, 4, 100])
def test_an_unsure_answer_is_given_again_with_retrieval(lm, slots, tokens):
    threshold, found = middle(lm, tokens)
    without, with_it = (decode(lm, requests(lm, policy), slots) for policy in (Never(), Every(4)))
    policy = IfUnsure(ConfidenceRule("mean", tokens, threshold, ARMS), Every(4))
    for value, result, plain, served in zip(
        found, decode(lm, requests(lm, policy), slots), without, with_it, strict=True
    ):
        assert result == (served if value < threshold else plain)
        assert bool(result.evidence) == (value < threshold)
    assert {value < threshold for value in found} == {True, False}


def test_nothing_is_seen_of_an_answer_that_does_not_stand(lm):
    """The updates of a request, put together, are its result; those of a draft come at once or never."""
    threshold, found = middle(lm, 4, logprobs=1)
    engine = lm.build_engine(3)
    policy = IfUnsure(ConfidenceRule("mean", 4, threshold, ARMS))
    tickets = [engine.submit(request) for request in requests(lm, policy, logprobs=1)]
    seen = {ticket: [] for ticket in tickets}
    while engine.active or engine.waiting:
        for update in engine.step():
            seen[update.ticket].append(update)
    for value, ticket in zip(found, tickets, strict=True):
        updates = seen[ticket]
        result = updates[-1].finished
        assert tuple(token for u in updates for token in u.tokens) == result.new_tokens
        assert "".join(u.text for u in updates) == result.text
        assert [p.logprob for u in updates for p in u.logprobs] == pytest.approx(result.token_logprobs)
        assert tuple(e for u in updates for e in u.evidence) == result.evidence
        assert len(updates[0].tokens) == (1 if value < threshold else 4)


def test_a_held_answer_can_be_cancelled(lm):
    engine = lm.build_engine(2)
    policy = IfUnsure(ConfidenceRule("mean", 8, math.inf, ARMS))
    tickets = [engine.submit(request) for request in requests(lm, policy)]
    for _ in range(4):
        assert engine.step() == []
    assert all(engine.cancel(ticket) for ticket in tickets)
    assert (engine.active, engine.waiting) == (0, 0)


def test_a_request_that_brings_its_evidence_is_not_drafted(lm):
    policy = IfUnsure(ConfidenceRule("mean", 4, math.inf, ARMS))
    given, plain = (requests(lm, p, evidence=(0, 1)) for p in (policy, None))
    assert decode(lm, given, 5) == decode(lm, plain, 5)


def test_one_policy_per_query():
    assert rule_policy(POPULARITY, "axis", 99) == Every()
    assert rule_policy(POPULARITY, "axis", 101) == Never()
    assert rule_policy(POPULARITY, None, 101, Every(4)) == Every(4)
    assert rule_policy(POPULARITY, "axis") == Never()
    # Never and always need no answer to decide on.
    assert rule_policy(ConfidenceRule("mean", 4, -math.inf, ARMS)) == Never()
    assert rule_policy(ConfidenceRule("mean", 4, math.inf, ARMS), then=Every(2)) == Every(2)
    sure = ConfidenceRule("mean", 4, -1.0, ARMS)
    assert rule_policy(sure, then=Every(4)) == IfUnsure(sure, Every(4))
    for wrong in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="popularity: expected monthly page views"):
            rule_policy(POPULARITY, "axis", wrong)
    for name, value in (("relation", "axis"), ("popularity", 3.0)):
        with pytest.raises(ConfigError, match=f"{name}: the policy decides by confidence"):
            rule_policy(sure, **{name: value})


def write_rule(tmp_path, rule):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(rule.to_json()))
    return path


def generate(run, *settings):
    return main(["generate", f"checkpoint={run}", "max_new_tokens=6", "temperature=0", *settings])


@pytest.mark.parametrize(("popularity", "like"), [("5", "on"), ("1000", "off"), (None, "off")])
def test_the_command_decides_by_popularity(workspace, tmp_path, capsys, popularity, like):
    path = write_rule(tmp_path, POPULARITY)
    settings = ["prompt=the sum of", f"retrieve=policy:{path}", "relation=axis"]
    assert generate(workspace.retro, *settings, *([f"popularity={popularity}"] if popularity else [])) == 0
    printed = capsys.readouterr().out.splitlines()
    (decision,) = [line for line in printed if line.startswith("[policy: ")]
    assert generate(workspace.retro, "prompt=the sum of", f"retrieve={like}") == 0
    assert [line for line in printed if line != decision] == capsys.readouterr().out.splitlines()
    known = {
        "5": "1.61 < 4.61 of relation 'axis': retrieve",
        "1000": "6.91 >= 4.61 of relation 'axis': do not retrieve",
    }
    assert known.get(popularity or "", "unknown popularity: do not retrieve") in decision


def test_lines_of_many_prompts_carry_relation_and_popularity(workspace, tmp_path, lm):
    path = write_rule(tmp_path, POPULARITY)
    given, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    lines = [
        {"prompt": "the sum of", "relation": "axis", "popularity": 5},
        {"prompt": "the sum of", "relation": "axis", "popularity": 500},
        {"prompt": "the sum of", "relation": "mean", "popularity": 5, "id": 7},
        {"prompt": "the sum of", "relation": "other", "popularity": 5e6},
        {"prompt": "the sum of"},
    ]
    given.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = [f"prompts_file={given}", f"output={output}", f"retrieve=policy:{path}"]
    assert generate(workspace.retro, *settings) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [bool(row["evidence"]) for row in rows] == [True, False, False, True, False]
    assert [row["policy"]["retrieved"] for row in rows] == [True, False, False, True, False]
    # What was made by another rule is not gone on with.
    output.unlink()
    (tmp_path / "out.jsonl.partial").write_text('{"generate": "other"}\n')
    assert generate(workspace.retro, *settings) == 2


def test_the_command_decides_by_confidence(workspace, tmp_path, capsys):
    usual = {}
    for like in ("on", "off"):
        assert generate(workspace.retro, "prompt=the sum of", f"retrieve={like}") == 0
        usual[like] = capsys.readouterr().out
    assert usual["on"] != usual["off"]
    for threshold, like in ((math.inf, "on"), (-math.inf, "off")):
        path = write_rule(tmp_path, ConfidenceRule("mean", 4, threshold, ARMS))
        assert generate(workspace.retro, "prompt=the sum of", f"retrieve=policy:{path}") == 0
        printed = capsys.readouterr().out.splitlines()
        assert [line for line in printed if not line.startswith("[policy: ")] == usual[like].splitlines()


@pytest.mark.parametrize(
    ("rule", "settings", "code", "message"),
    [
        (None, ["retrieve=policy:nowhere.json"], 3, "nowhere.json: not found"),
        (None, ["relation=axis"], 2, "relation: is read with retrieve=policy:FILE only"),
        (None, ["popularity=3", "retrieve=on"], 2, "popularity: is read with retrieve=policy:FILE only"),
        (POPULARITY, ["popularity=-3"], 2, "popularity: expected monthly page views"),
        (ConfidenceRule("mean", 4, -1.0, ARMS), ["popularity=3"], 2, "popularity: the policy decides by confidence"),
    ],
)
def test_mistakes_are_one_line(workspace, tmp_path, capsys, rule, settings, code, message):
    if rule is not None:
        settings = [f"retrieve=policy:{write_rule(tmp_path, rule)}", *settings]
    assert generate(workspace.retro, "prompt=x", *settings) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "x", "relation": 3}, "prompts.jsonl:1: relation: expected a text, found 3"),
        ({"prompt": "x", "relation": "\ud800"}, "prompts.jsonl:1: relation: expected UTF-8 text"),
        ({"prompt": "x", "popularity": "many"}, "prompts.jsonl:1: popularity: expected a number"),
        ({"prompt": "x", "popularity": -1}, "prompts.jsonl:1: popularity: expected monthly page views"),
    ],
)
def test_mistakes_in_lines_name_the_line(workspace, tmp_path, capsys, line, message):
    given = tmp_path / "prompts.jsonl"
    given.write_text(json.dumps(line) + "\n")
    settings = [
        f"prompts_file={given}",
        f"output={tmp_path / 'out'}",
        "retrieve=policy:" + str(write_rule(tmp_path, POPULARITY)),
    ]
    assert generate(workspace.retro, *settings) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_policy_for_passages_elsewhere_is_noted(workspace, tmp_path, capsys):
    path = write_rule(tmp_path, PopularityRule({}, math.inf, True, RuleArms("closed_book", "rag")))
    assert generate(workspace.retro, "prompt=x", f"retrieve=policy:{path}") == 0
    assert "the policy was fitted for arm 'rag'" in capsys.readouterr().err


def test_a_gpt_has_nothing_to_decide(workspace, tmp_path, capsys):
    path = write_rule(tmp_path, POPULARITY)
    assert generate(workspace.gpt, "prompt=x", f"retrieve=policy:{path}") == 2
    assert "this model is a GPT, it retrieves nothing" in capsys.readouterr().err
