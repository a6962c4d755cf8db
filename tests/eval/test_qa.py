"""Task qa against a model that reads, and against real ones: arms, rows, latency, rules, resume, rescoring."""

import dataclasses
import json
import math
import subprocess
import sys
import time

import pytest
from tqdm import tqdm

from retro.artifacts.retrieval_rule import ConfidenceRule, PopularityRule, RuleArms
from retro.cli.main import main
from retro.config.errors import ArtifactMissingError, ConfigError
from retro.config.evaluation import EvalConfig
from retro.config.qa import QaEvalConfig, QaLayoutConfig
from retro.data.qa.prepared import open_prepared
from retro.data.qa.record import Passage, PreparedQuestion, QaQuestion
from retro.data.qa.task import TaskDefinition, task_to_dict
from retro.data.tokenizer import open_tokenizer
from retro.eval.qa_opening import open_qa_task
from retro.eval.responses import RESPONSES_NAME, RESULTS_NAME, SCORES_NAME, open_log
from retro.eval.results import write_results
from retro.eval.runner import answer, evaluate
from retro.eval.tasks.qa import QaTask
from retro.eval.tasks.qa_arms import open_arms
from retro.inference.checkpoint import open_checkpoint
from tests.data.qa.prepared_folder import write_prepared_folder
from tests.eval.qa_workspace import Reader, write_questions
from tests.eval.workspace import CHUNK

ARMS = ("closed_book", "rag", "retro", "retro++", "retro++/gate_0", "retro/oracle", "retro/random")
LAYOUT = QaLayoutConfig(passages=2, passage_tokens=64, prompt_chunks=8, answer_tokens=8)
TIMES = ("seconds", "latency_ms")


def read(folder, name=RESPONSES_NAME):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def make_task(workspace, questions, arms=ARMS, layout=LAYOUT, **fields):
    prepared = open_prepared(questions)
    return QaTask(
        prepared.task,
        prepared.read("test"),
        prepared.read("train"),
        open_arms(arms, reads_neighbors=True),
        open_tokenizer(workspace.release.tokenizer),
        chunk_length=CHUNK,
        questions_fingerprint=prepared.fingerprint,
        layout=layout,
        **{"batch": 4, "block_batches": 2, **fields},
    )


def run_fake(task, model, folder):
    identity = {"task": "qa", "version": 1, "split": "test", "material": task.identity()}
    identity |= {"checkpoint": "fake", "release": "fake", "num_neighbors": 2}
    answer(task, model, open_log(folder, identity, {}), progress=False)
    return write_results(folder)


def by_arm(rows):
    return {arm: [row for row in rows if row["arm"] == arm] for arm in dict.fromkeys(row["arm"] for row in rows)}


def test_each_arm_is_given_what_it_is_to_be_given(workspace, colour_questions, tmp_path):
    task, model = make_task(workspace, colour_questions), Reader(workspace)
    results = run_fake(task, model, tmp_path)
    rows = by_arm(read(tmp_path))
    assert list(rows) == list(ARMS) and all(len(part) == 22 for part in rows.values())
    places = {arm: {tuple(p["where"] for p in row["passages"]) for row in part} for arm, part in rows.items()}
    assert places == {
        "closed_book": {()},
        "rag": {("prompt",)},
        "retro": {("encoder", "encoder")},
        "retro++": {("prompt", "encoder")},
        "retro++/gate_0": {("prompt",)},
        "retro/oracle": {("encoder", "encoder")},
        "retro/random": {("encoder", "encoder")},
    }
    # Every fourth answer stands in the first passage, every fourth in the second.
    scores = by_arm(read(tmp_path, SCORES_NAME))
    right = {arm: {score["id"] for score in part if score["exact_match"]} for arm, part in scores.items()}
    first = {f"test{i:03d}" for i in range(22) if i % 4 == 0}
    both = {f"test{i:03d}" for i in range(22) if i % 4 < 2}
    assert right["closed_book"] == right["retro/random"] == set()
    assert len({row["prediction"] for row in rows["retro/random"]}) > 3  # answers of other questions
    assert right["rag"] == right["retro++/gate_0"] == first
    assert right["retro"] == right["retro++"] == both
    assert len(right["retro/oracle"]) == 22
    assert results["arms"]["retro"]["exact_match"] == pytest.approx(len(both) / 22)
    assert results["arms"]["closed_book"] == {
        "exact_match": 0.0,
        "f1": 0.0,
        "substring": 0.0,
        "substring_strict": 0.0,
        "n": 22,
        "missing": 0,
    }
    # Requests come in the order of the rows: block by block, arm by arm.
    asked = zip(model.requests, read(tmp_path), strict=True)
    assert {request.neighbors for request, row in asked if row["arm"] == "retro++/gate_0"} == {()}


def test_rows_hold_the_question_the_answer_and_what_it_cost(workspace, colour_questions, tmp_path):
    task, model = make_task(workspace, colour_questions, ("rag", "retro")), Reader(workspace)
    run_fake(task, model, tmp_path)
    rows = by_arm(read(tmp_path))
    row = rows["retro"][1]
    prompt_tokens, encoder_tokens = row.pop("prompt_tokens"), row.pop("encoder_tokens")
    assert row == {
        "id": "test001",
        "question": "what colour is test thing 1?",
        "answers": ["Emerald", "the emerald"],
        "evidence": ["doc-test-1"],
        "group": "pixels",
        "relation": "colour of pixels",
        "subject": "test thing 1",
        "popularity": 10.0,
        "object_popularity": 7.0,
        "seen": False,
        "num_retrieved": 5,
        "evidence_rank": 1,
        "answer_rank": 1,
        "arm": "retro",
        "arm_used": "retro",
        "text": " emerald",
        "prediction": "emerald",
        "token_logprobs": [-0.125] * 3,
        "new_tokens": 3,
        "seconds": 0.25,
        "passages": [
            {"document": "other-test-1-0", "chunk": 0, "where": "encoder"},
            {"document": "doc-test-1", "chunk": 101, "where": "encoder"},
        ],
        "answer_given": True,
        "truncated_passage": False,
        "latency_ms": None,
    }
    request = model.requests[len(rows["rag"][:8]) + 1]
    assert (len(request.prompt), sum(map(len, request.neighbors))) == (prompt_tokens, encoder_tokens)
    assert request.until == ("\n",) and request.max_new_tokens == 8
    assert model.prompt(request).endswith("question: what colour is test thing 1?\nanswer:")
    assert model.neighbors(request)[1].startswith("title: test thing 1, source: test thing 1 is emerald")
    assert {r["answer_given"] for r in rows["rag"]} == {True, False}
    assert [r["evidence_rank"] for r in rows["rag"][:4]] == [0, 1, 2, None]


def test_results_and_scores_are_functions_of_the_rows(workspace, colour_questions, tmp_path):
    silent = ("test thing 3?",)
    task = make_task(workspace, colour_questions, ("closed_book", "retro", "retro/oracle"))
    results = run_fake(task, Reader(workspace, silent), tmp_path)
    rows, scores = read(tmp_path), read(tmp_path, SCORES_NAME)
    assert [(s["id"], s["arm"]) for s in scores] == [(r["id"], r["arm"]) for r in rows]
    for row, score in zip(rows, scores, strict=True):
        known = row["prediction"] is not None
        assert score["exact_match"] == (float(row["prediction"] == row["answers"][0].lower()) if known else None)
    assert results["arms"]["retro/oracle"]["n"] == 21 and results["arms"]["retro/oracle"]["missing"] == 1
    oracle = results["arms"]["retro/oracle"]
    assert oracle["exact_match"] == 1.0 and oracle["substring"] == 1.0 and oracle["substring_strict"] == 1.0
    assert results["task_definition"]["name"] == "colours" and results["primary"] == "exact_match"
    assert results["qa"] == {
        "questions": open_prepared(colour_questions).fingerprint,
        "layout": dataclasses.asdict(LAYOUT),
        "shots": 0,
        "shots_seed": None,
        "max_new_tokens": 8,
    }
    assert set(results["by_group"]["retro"]) == {"pixels", "rows"}
    assert {k: v["n"] for k, v in results["by_seen"]["closed_book"].items()} == {"seen": 6, "unseen": 12, "unknown": 3}
    assert results["by_answer_given"]["retro"]["given"]["exact_match"] == 1.0
    assert results["by_answer_given"]["retro"]["not_given"]["exact_match"] == 0.0
    assert results["by_answer_given"]["closed_book"] == {}
    recall = results["retrieval"]
    assert recall["evidence"]["1"] == pytest.approx(6 / 22) and recall["answer"]["2"] == pytest.approx(12 / 22)
    assert recall["n_evidence"] == 22 and set(recall["by_group"]) == {"pixels", "rows"}
    bins = results["by_popularity"]["arms"]["retro"]
    assert [(b["low"], b["high"]) for b in bins if b["n"]] == [(1, 3), (10, 30), (100, 300), (1000, 3000)]
    # Each colour answers two training questions: the guess is the one that sorts first, of all and of each group.
    assert results["baselines"]["commonest_answer"]["exact_match"] == pytest.approx(4 / 22)  # amber
    assert results["baselines"]["commonest_of_group"]["exact_match"] == pytest.approx(8 / 22)  # and crimson
    assert results["cost"]["retro"]["seconds"] >= 0.25 * 21 / 22
    assert results["share_retrieved"] == {"closed_book": 0.0, "retro": 1.0, "retro/oracle": 1.0}
    before = {name: (tmp_path / name).read_bytes() for name in (RESULTS_NAME, SCORES_NAME)}
    for name in before:
        (tmp_path / name).unlink()
    assert write_results(tmp_path) == results
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_demonstrations_come_from_training_questions_of_other_relations(workspace, colour_questions, tmp_path):
    layout = dataclasses.replace(LAYOUT, prompt_chunks=40)
    task = make_task(workspace, colour_questions, ("closed_book", "rag"), layout, shots=3, max_questions=6)
    model = Reader(workspace)
    run_fake(task, model, tmp_path)
    for request, row in zip(model.requests, read(tmp_path), strict=True):
        *shots, asked = model.prompt(request).split("\n\n")
        assert len(shots) == 3 and all("train thing" in shot and "test thing" not in shot for shot in shots)
        assert all(int(shot.split("thing ")[-1].split("?")[0]) % 2 != int(row["id"][4:]) % 2 for shot in shots)
        assert all(("source:" in shot) == (row["arm"] == "rag") for shot in [*shots, asked])


def test_training_questions_keep_the_passages_that_demonstrations_show(workspace, colour_questions, tmp_path):
    """What the command opens gives the same prompts as all that was prepared."""
    layout = dataclasses.replace(LAYOUT, prompt_chunks=40)
    settings = {"shots": 2, "max_questions": 4, "layout": layout, "arms": ("rag", "rag/oracle", "closed_book")}
    config = eval_config(workspace, colour_questions, tmp_path, **settings)
    tokenizer = open_tokenizer(workspace.release.tokenizer)
    checkpoint = open_checkpoint(workspace.retro)
    opened = open_qa_task(config, checkpoint, tokenizer, checkpoint.load_model())
    whole = make_task(workspace, colour_questions, settings["arms"], layout, shots=2, max_questions=4)
    prompts = []
    for task in (opened, whole):
        reader = Reader(workspace)
        for number in range(task.num_blocks):
            task.run_block(number, reader, None)
        prompts.append([request.prompt for request in reader.requests])
    assert prompts[0] == prompts[1] and len(set(prompts[0])) == 12


def test_a_question_that_does_not_fit_has_no_answer_and_is_counted(workspace, colour_questions, tmp_path, capsys):
    layout = dataclasses.replace(LAYOUT, prompt_chunks=1)
    task = make_task(workspace, colour_questions, ("closed_book",), layout, max_questions=3)
    results = run_fake(task, Reader(workspace), tmp_path)
    assert results["arms"]["closed_book"]["missing"] == 3 and results["too_long"] == {"closed_book": 3}
    assert results["cost"]["closed_book"]["prompt_tokens"] is None


@pytest.mark.parametrize(("prompt_chunks", "passage_tokens", "whole"), [(5, 34, False), (6, 44, True)])
def test_a_cut_passage_holds_an_answer_only_as_far_as_it_is_read(
    workspace, colour_questions, tmp_path, prompt_chunks, passage_tokens, whole
):
    layout = dataclasses.replace(LAYOUT, prompt_chunks=prompt_chunks, passage_tokens=passage_tokens, passages=1)
    task = make_task(workspace, colour_questions, ("rag", "retro"), layout, max_questions=1)
    model = Reader(workspace)
    run_fake(task, model, tmp_path)
    rag, retro = read(tmp_path)
    assert rag["truncated_passage"] is not whole and "source: test thing 0 is" in model.prompt(model.requests[0])
    assert rag["answer_given"] is retro["answer_given"] is whole
    assert (rag["prediction"] != "no idea") is (retro["prediction"] != "no idea") is whole


def test_what_is_left_of_a_cut_passage_is_searched(workspace, tmp_path):
    """The answer stands at the begin of a long passage, in the question, and in a demonstration's passage."""
    own = Passage("Page", "Crimson is the colour. " + "There is more to say about it all. " * 9, "d")
    asked = PreparedQuestion(QaQuestion("q", "is it crimson or amber?", ("crimson",)), (own,))
    other = dataclasses.replace(asked, question=QaQuestion("p", "is it?", ("amber",)))
    for text, expected in ((own.text, True), (own.text.replace("Crimson", "That"), False)):
        given = dataclasses.replace(asked, passages=(dataclasses.replace(own, text=text),))
        root = write_prepared_folder(
            tmp_path / str(expected), task_to_dict(TaskDefinition(name="long")), {"train": [other], "test": [given]}
        )
        layout = dataclasses.replace(LAYOUT, prompt_chunks=20)
        task = make_task(workspace, root, ("rag",), layout, shots=1)
        run_fake(task, Reader(workspace), tmp_path / f"out-{expected}")
        (row,) = read(tmp_path / f"out-{expected}")
        assert row["truncated_passage"] and row["answer_given"] is expected


def test_latency_is_of_questions_asked_alone(workspace, colour_questions, tmp_path):
    task = make_task(workspace, colour_questions, ("closed_book", "retro"), latency_questions=3)
    model = Reader(workspace)
    results = run_fake(task, model, tmp_path)
    assert model.calls == [1, 1, 1, 1, 8] * 2 + [8, 8] + [6, 6]  # one to warm up
    for rows in by_arm(read(tmp_path)).values():
        assert [row["latency_ms"] is not None for row in rows] == [True] * 3 + [False] * 19
    assert results["cost"]["retro"]["latency_ms"] > 0 and results["cost"]["retro"]["latency_questions"] == 3


def rule_file(path, rule):
    path.write_text(json.dumps(rule.to_json()))
    return f"adaptive:{path}"


def test_a_rule_of_popularity_chooses_the_arm_of_each_question(workspace, colour_questions, tmp_path):
    arms = RuleArms("closed_book", "retro")
    rule = PopularityRule({"colour of rows": math.log(50), "colour of pixels": -math.inf}, -math.inf, True, arms)
    spelled = rule_file(tmp_path / "popular.json", rule)
    task, model = make_task(workspace, colour_questions, ("closed_book", spelled)), Reader(workspace)
    results = run_fake(task, model, tmp_path / "out")
    rows = by_arm(read(tmp_path / "out"))["adaptive:popular"]
    for row in rows:
        expected = row["popularity"] is None or (row["relation"] == "colour of rows" and row["popularity"] < 50)
        assert row["arm_used"] == ("retro" if expected else "closed_book") and bool(row["passages"]) == expected
        assert (row["encoder_tokens"] > 0) == expected
    assert 0 < results["share_retrieved"]["adaptive:popular"] < 1
    assert sum(model.calls) == 44  # each question once in each arm
    assert str(tmp_path) not in (tmp_path / "out" / RESULTS_NAME).read_text()


def test_a_rule_of_confidence_asks_again_where_the_model_is_unsure(workspace, colour_questions, tmp_path):
    rule = ConfidenceRule("mean", 24, -1.0, RuleArms("rag", "retro/oracle"))
    spelled = rule_file(tmp_path / "sure.json", rule)
    task, model = make_task(workspace, colour_questions, ("rag", spelled)), Reader(workspace)
    results = run_fake(task, model, tmp_path / "out")
    rows = by_arm(read(tmp_path / "out"))
    for fixed, adaptive in zip(rows["rag"], rows["adaptive:sure"], strict=True):
        unsure = fixed["prediction"] == "no idea"
        assert adaptive["arm_used"] == ("retro/oracle" if unsure else "rag")
        assert adaptive["prediction"] != "no idea"
        # Both times count.
        assert adaptive["seconds"] == (0.5 if unsure else 0.25) and adaptive["new_tokens"] == (6 if unsure else 3)
        assert (adaptive["prompt_tokens"] > fixed["prompt_tokens"]) == unsure
    assert results["arms"]["adaptive:sure"]["exact_match"] == 1.0
    identity = task.identity()
    other = rule_file(tmp_path / "sure.json", dataclasses.replace(rule, threshold=-1.5))
    assert make_task(workspace, colour_questions, ("rag", other)).identity() != identity


def test_two_rules_of_one_name_are_refused(tmp_path):
    rule = ConfidenceRule("mean", 24, -1.0, RuleArms("closed_book", "retro"))
    spelled = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        spelled.append(rule_file(tmp_path / folder / "policy.json", rule))
    with pytest.raises(ConfigError, match="'adaptive:policy' twice"):
        open_arms(spelled, reads_neighbors=True)
    with pytest.raises(ConfigError, match="plain GPT"):
        open_arms(spelled[:1], reads_neighbors=False)
    with pytest.raises(ArtifactMissingError, match=r"nowhere\.json: not found"):
        open_arms(["adaptive:nowhere.json"], reads_neighbors=True)


def eval_config(workspace, questions, output, run="retro", arms=("closed_book", "retro", "retro++"), **fields):
    section = {"max_questions": 12, "layout": LAYOUT, **fields}
    settings = {"batch": 4, "block_batches": 1, "output": str(output)}
    section |= {"questions": str(questions), "arms": arms}
    return EvalConfig(checkpoint=str(getattr(workspace, run)), task="qa", qa=QaEvalConfig(**section), **settings)


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in (*TIMES, "token_logprobs")} for row in rows]


def test_evaluating_real_models(workspace, colour_questions, tmp_path):
    folder = evaluate(eval_config(workspace, colour_questions, tmp_path / "retro"), progress=False)
    assert folder == tmp_path / "retro" / "eval" / "qa-colours-test"
    plain = evaluate(eval_config(workspace, colour_questions, tmp_path, "gpt", ("closed_book", "rag")), progress=False)
    rows, gpt = by_arm(read(folder)), by_arm(read(plain))
    # Untrained, but of one seed: without passages the two write the same, and passages change it.
    assert [r["text"] for r in rows["closed_book"]] == [r["text"] for r in gpt["closed_book"]]
    assert [r["text"] for r in rows["closed_book"]] != [r["text"] for r in rows["retro"]]
    assert [r["text"] for r in rows["retro"]] != [r["text"] for r in rows["retro++"]]
    for row in rows["retro"]:
        assert len(row["token_logprobs"]) - row["new_tokens"] in (0, 1) and all(v <= 0 for v in row["token_logprobs"])
        assert row["seconds"] > 0
    results = json.loads((folder / RESULTS_NAME).read_text())
    assert results["model"] == "retro" and results["split"] == "test" and results["arms"]["retro"]["n"] == 12
    assert results["throughput"]["modes"].keys() == {"closed_book", "retro", "retro++"}


def test_a_killed_evaluation_asks_no_committed_question_again(workspace, colour_questions, tmp_path, monkeypatch):
    clean = evaluate(eval_config(workspace, colour_questions, tmp_path / "clean"), progress=False)
    run_block, asked = QaTask.run_block, []

    def run_first(self, number, model, carry):
        asked.append(number)
        if number == 4 and len(asked) == 5:
            raise KeyboardInterrupt
        return run_block(self, number, model, carry)

    monkeypatch.setattr(QaTask, "run_block", run_first)
    with pytest.raises(KeyboardInterrupt):
        evaluate(eval_config(workspace, colour_questions, tmp_path / "killed"), progress=False)
    resumed = evaluate(eval_config(workspace, colour_questions, tmp_path / "killed"), progress=False)
    assert asked == [0, 1, 2, 3, 4, 4, 5, 6, 7, 8]  # three arms, three times four questions
    assert without_times(read(resumed)) == without_times(read(clean))
    again = evaluate(eval_config(workspace, colour_questions, tmp_path / "killed"), progress=False)
    assert again == resumed and len(asked) == 10


@pytest.mark.slow
def test_the_bar_of_a_resumed_evaluation_begins_with_the_answers_that_are_there(
    workspace, colour_questions, tmp_path, monkeypatch
):
    task = make_task(workspace, colour_questions, ("closed_book", "rag"), max_questions=3)
    run_block, begun = task.run_block, []

    def run_once(number, *rest):
        if number:
            raise KeyboardInterrupt
        return run_block(number, *rest)

    monkeypatch.setattr("tqdm.tqdm", lambda **options: begun.append(options["initial"]) or tqdm(**options))
    monkeypatch.setattr(task, "run_block", run_once)
    with pytest.raises(KeyboardInterrupt):
        run_fake(task, Reader(workspace), tmp_path)
    monkeypatch.setattr(task, "run_block", run_block)
    run_fake(task, Reader(workspace), tmp_path)
    assert begun == [0, 3]


def test_a_process_that_is_killed_resumes(workspace, colour_questions, tmp_path):
    """SIGKILL after some blocks, several times: what was committed stays, the answers are those of a run in one go."""
    section = f"qa={{questions: {colour_questions}, arms: [closed_book, retro++, retro], max_questions: 22}}"
    shared = ["task=qa", f"checkpoint={workspace.retro}", "batch=1", "block_batches=1", section]
    assert main(["eval", *shared, f"output={tmp_path / 'clean'}"]) == 0
    command = [sys.executable, "-m", "retro.cli.eval", *shared, f"output={tmp_path / 'killed'}"]
    folder = tmp_path / "killed" / "eval" / "qa-colours-test"
    done = []
    for wanted in (5, 30):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while process.poll() is None and _committed(folder) < wanted:
            time.sleep(0.01)
        process.kill()
        process.wait()
        done.append(_committed(folder))
    assert 5 <= done[0] < done[1] < 66
    assert main(["eval", *shared, f"output={tmp_path / 'killed'}"]) == 0
    clean = tmp_path / "clean" / "eval" / "qa-colours-test"
    assert without_times(read(folder)) == without_times(read(clean)) and len(read(folder)) == 66


def _committed(folder):
    try:
        return json.loads((folder / "state.json").read_text())["blocks"]
    except FileNotFoundError:
        return 0


def test_a_gpt_reads_no_neighbors(workspace, colour_questions, tmp_path):
    for arm in ("retro", "retro++", "retro/gate_0"):
        with pytest.raises(ConfigError, match="arms that a plain GPT can read"):
            evaluate(eval_config(workspace, colour_questions, tmp_path, "gpt", (arm,)), progress=False)


def test_demonstrations_need_a_training_split(workspace, tmp_path):
    questions = write_questions(tmp_path / "alone", test=4, train=0)
    with pytest.raises(ConfigError, match="shots: demonstrations come from split 'train'"):
        evaluate(eval_config(workspace, questions, tmp_path, shots=2), progress=False)
    with pytest.raises(ConfigError, match="found 'dev'"):
        evaluate(eval_config(workspace, questions, tmp_path, split="dev"), progress=False)


def test_regular_expressions_are_matched_and_never_guessed(workspace, tmp_path):
    task = TaskDefinition(name="patterns", answers_are="regex", metrics=("regex",), primary="regex")
    questions = write_questions(tmp_path / "patterns", task, test=8)
    results = run_fake(make_task(workspace, questions, ("rag", "retro/oracle")), Reader(workspace), tmp_path / "out")
    assert results["arms"]["retro/oracle"] == {"regex": 1.0, "n": 8, "missing": 0}
    assert results["arms"]["rag"]["regex"] == 0.25 and results["baselines"] == {}


def test_the_commands(workspace, colour_questions, tmp_path, capsys):
    section = [f"qa.questions={colour_questions}", "qa.arms=[closed_book, retro]", "qa.max_questions=3"]
    section += ["qa.layout.prompt_chunks=8"]
    command = ["eval", "task=qa", f"checkpoint={workspace.retro}", f"output={tmp_path}", *section]
    assert main(command) == 0
    printed = capsys.readouterr()
    assert "colours test, retro, step 10" in printed.out and "6/6" in printed.err
    lines = printed.out.splitlines()
    assert lines[1].split()[:3] == ["closed_book", "exact", "match"] and "substring strict" in lines[2]
    folder = tmp_path / "eval" / "qa-colours-test"
    (folder / RESULTS_NAME).unlink()
    assert main(["eval", "rescore", str(folder)]) == 0 and capsys.readouterr().out == printed.out
    assert main([*command, "qa.layout.prompt_chunks=1", "name=short"]) == 0
    assert "3 of them too long for qa.layout.prompt_chunks" in capsys.readouterr().out
    assert main([*command, "qa.shots=1"]) == 3 and "material.shots is 0 there, 1 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["task=qa"], "qa: task 'qa' needs this section"),
        (["task=qa", "qa.questions=x"], "qa.arms: expected at least one"),
        (["task=qa", "qa.questions=x", "qa.arms=[rag]", "modes=[on]"], "modes: is not read by task 'qa'; give qa.arms"),
        (["task=qa", "qa.questions=x", "qa.arms=[rag]", "split=valid"], "give qa.split"),
        (["task=qa", "qa.questions=x", "qa.arms=[rag]", "database=y"], "database: is not read by task 'qa'"),
        (["task=qa", "qa.questions=x", "qa.arms=['adaptive:']"], "expected the path of a policy.json"),
        (["task=perplexity", "qa.questions=x", "qa.arms=[rag]"], "qa: is not read by task 'perplexity'"),
    ],
)
def test_mistakes_in_the_configuration(arguments, message, capsys):
    assert main(["eval", "checkpoint=x", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
