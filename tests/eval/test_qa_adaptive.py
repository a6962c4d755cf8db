"""From answers to a policy and back: `retro eval`, `retro qa adaptive`, and the policy as an arm of `retro eval`."""

import json

import pytest

from retro.artifacts.retrieval_rule import open_rule
from retro.cli.main import main
from tests.eval.qa_workspace import Reader
from tests.eval.test_qa import LAYOUT, by_arm, make_task, read, run_fake

FREE = ("arm", "seconds", "latency_ms", "arm_used", "prompt_tokens", "encoder_tokens", "new_tokens", "token_logprobs")


def answers(row):
    return {key: value for key, value in row.items() if key not in FREE}


@pytest.mark.parametrize(("kind", "name"), [("popularity", "policy"), ("confidence", "policy-confidence")])
def test_a_fitted_policy_is_at_least_as_good_as_the_better_arm(workspace, colour_questions, tmp_path, kind, name):
    fixed = run_fake(make_task(workspace, colour_questions, ("rag", "retro")), Reader(workspace), tmp_path / "fixed")
    command = ["qa", "adaptive", str(tmp_path / "fixed"), "--closed", "rag", "--retrieval", "retro", "--splits", "5"]
    # So few questions tell no threshold from luck: by anything that is better.
    assert main([*command, "--min-questions", "1", "--margin", "0"]) == 0
    path = tmp_path / "fixed" / f"{name}.json"
    assert open_rule(path).kind == kind
    figures = json.loads((tmp_path / "fixed" / "adaptive.json").read_text())["comparisons"][0]
    assert figures["all"] == {**figures["all"], **{
        arm: fixed["arms"][name]["exact_match"] for arm, name in (("closed", "rag"), ("retrieval", "retro"))
    }}  # fmt: skip
    task, model = make_task(workspace, colour_questions, (f"adaptive:{path}",)), Reader(workspace)
    results = run_fake(task, model, tmp_path / "out")
    found = results["arms"][f"adaptive:{name}"]["exact_match"]
    assert found >= max(scores["exact_match"] for scores in fixed["arms"].values())
    rows = by_arm(read(tmp_path / "fixed"))
    used = set()
    for number, row in enumerate(read(tmp_path / "out")):
        assert answers(row) == answers(rows[row["arm_used"]][number])
        used.add(row["arm_used"])
    if kind == "confidence":  # this reader says when it does not know
        assert used == {"rag", "retro"} and sum(model.calls) > len(rows["rag"])
        assert found == figures["all"]["oracle"]


def test_the_commands_on_a_real_model(workspace, colour_questions, tmp_path, capsys):
    def evaluate(name, arms, *more):
        layout = ", ".join(f"{key}: {getattr(LAYOUT, key)}" for key in ("passages", "passage_tokens", "answer_tokens"))
        command = [f"checkpoint={workspace.retro}", f"output={tmp_path}", f"name={name}", "task=qa", "batch=4"]
        section = [f"qa.questions={colour_questions}", f"qa.arms=[{arms}]", f"qa.layout={{{layout}}}"]
        assert main(["eval", *command, *section, "qa.latency_questions=4", "device=cpu", *more]) == 0
        return tmp_path / "eval" / name

    fixed = evaluate("fixed", "retro/gate_0, retro")
    command = ["qa", "adaptive", str(fixed), "--closed", "retro/gate_0", "--retrieval", "retro", "--splits", "5"]
    assert main([*command, "--metric", "f1", "--draws", "100"]) == 0
    printed = capsys.readouterr().out
    assert "latency, ms" in printed and "seconds per question" in printed
    out = evaluate("adaptive", f"'adaptive:{fixed / 'policy.json'}', 'adaptive:{fixed / 'policy-confidence.json'}'")
    results = json.loads((out / "results.json").read_text())
    assert set(results["arms"]) == {"adaptive:policy", "adaptive:policy-confidence"}
    assert "note: adaptive:policy was fitted on these questions" in capsys.readouterr().err
    policy = json.loads((fixed / "policy.json").read_text())
    (fixed / "policy.json").write_text(json.dumps({**policy, "fitted": {**policy["fitted"], "split": "dev"}}))
    evaluate("adaptive", f"'adaptive:{fixed / 'policy.json'}', 'adaptive:{fixed / 'policy-confidence.json'}'")
    assert "adaptive:policy was fitted" not in capsys.readouterr().err
    rows, adaptive = by_arm(read(fixed)), by_arm(read(out))
    for arm in adaptive:
        for number, row in enumerate(adaptive[arm]):
            assert answers(row) == answers(rows[row["arm_used"]][number])
    # Figures about answers that are discarded go with them; a policy may be in use.
    evaluate("fixed", "retro", "overwrite=true")
    assert not (fixed / "adaptive.json").exists() and (fixed / "policy.json").exists()
