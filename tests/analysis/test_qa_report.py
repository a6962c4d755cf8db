"""What the report says about question answering: sentences, tables, charts, page; and that other reports stay as they
are."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest

from retro.analysis.adaptive_prices import Prices
from retro.analysis.bootstrap import Estimate
from retro.analysis.comparison import compare_runs
from retro.analysis.html_report import render_report
from retro.analysis.qa_charts import popularity_chart, qa_charts
from retro.analysis.qa_tables import qa_tables
from retro.analysis.qa_wording import main_candidate, points, qa_headline, qa_sentences
from retro.analysis.runs import load_runs
from retro.analysis.tables import render_text
from retro.cli.main import main as retro_main
from retro.config.errors import ArtifactCorruptError, ArtifactError
from tests.analysis.builders import build_pair, write_json
from tests.analysis.qa_builders import build_qa_pair, build_qa_run, read_lines, write_adaptive, write_lines, write_qa
from tests.analysis.test_report import EVIL, SMALL, check

EVALUATION = "eval/qa-popqa-test"
POPULARITY = ["comparisons", 0, "policies", "popularity"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A GPT and a RETRO with six arms, three numbers of passages, and adaptive.json; read-only by agreement."""
    gpt, retro = build_qa_pair(tmp_path_factory.mktemp("qa") / "runs", metrics=True)
    write_adaptive(retro / EVALUATION, gpt / EVALUATION)
    return gpt, retro


@pytest.fixture(scope="module")
def comparison(paths):
    return compare_runs(load_runs(paths), draws=500)


@pytest.fixture(scope="module")
def result(comparison):
    (found,) = comparison.qa
    return found


def table(result, title):
    (found,) = [t for t in qa_tables(result) if t.title.startswith(title)]
    return found


def rows(found):
    return {row.cells[0]: row.cells[1:] for row in found.rows}


# ---------------------------------------------------------------- sentences


def test_the_headline_is_about_an_arm_that_was_not_chosen_by_its_score(result):
    assert main_candidate(result).arm == "retro"  # retro++ is better here
    text = qa_headline(result)
    assert re.match(r"RETRO \d+\.\d% vs closed book \d+\.\d% exact match over 240 questions of popqa, test: \+", text)
    assert text.endswith("McNemar p < 0.0001; RETRO is better.")


def test_who_is_better_is_said_only_where_interval_and_test_agree(result):
    sentences = qa_sentences(result)
    (control,) = [s for s in sentences if s.startswith("Control: RETRO, random evidence")]
    assert control.endswith("no difference can be told.")
    (both,) = [s for s in sentences if s.startswith("RETRO++ minus RAG")]
    assert both.endswith("RETRO++ is better.")
    for sentence in sentences:
        p = re.search(r"p = ([\d.]+)", sentence)
        if p and float(p[1].rstrip(".")) >= 0.05:
            assert "is better" not in sentence
    unseen = [s for s in sentences if s.startswith("120 questions about documents that were never trained on")]
    assert len(unseen) == 3  # RAG, RETRO, RETRO++
    assert any("wrong answers" in s for s in sentences)
    assert sum(s.startswith("Adaptive retrieval by") for s in sentences) == 2


def test_points_of_nothing_and_of_few_documents():
    assert points(Estimate(None)) == "nothing to compare"
    assert points(Estimate(0.0523)) == "+5.2 points (too few documents for an interval)"
    assert points(Estimate(-0.0523, -0.1, 0.01)) == "-5.2 points [95% CI -10.0, +1.0]"


def test_one_arm_alone_has_a_headline_and_no_differences(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book",))
    comparison = compare_runs(load_runs([path]), draws=200)
    text = render_text(comparison, 100)
    assert re.search(r"closed book: \d+\.\d% exact match over 240 questions", text)
    assert "Every difference" not in text and "McNemar p <" not in text


# ---------------------------------------------------------------- tables


def test_tables_in_order(result):
    titles = [found.title.split(":")[0].split(",")[0] for found in qa_tables(result)]
    assert titles == [
        "Arms side by side", "Every difference", "Seen in training or not", "By group", "Exact match by relation",
        "Exact match by popularity", "Recall of the retriever", "Which part of the error is retrieval",
        "When retrieval helps and when it hurts", "Exact match by number of passages", "Cost per question",
        "Adaptive retrieval",
    ]  # fmt: skip


def test_arms_have_all_metrics_and_baselines_none_of_the_tests(result):
    found = table(result, "Arms side by side")
    assert found.heads == ("arm", "exact match, %", "F1, %", "substring, %", "minus closed book", "McNemar p")
    cells = rows(found)
    assert re.fullmatch(r"\d+\.\d \[\d+\.\d, \d+\.\d\]", cells["RETRO"][0])
    assert cells["closed book"][3:] == ("", "") and cells["RETRO"][4] == "<0.0001"
    assert cells["without reading: commonest answer"] == ("2.0", "3.0", "2.0", "", "")


def test_every_pair_has_its_discordant_questions(result):
    found = table(result, "Every difference")
    assert len(found.rows) == 15
    contrast = next(c for c in result.contrasts if c.candidate.endswith("retro++") and c.reference.endswith("rag"))
    cells = rows(found)["RETRO++ minus RAG"]
    assert cells[1:3] == (str(contrast.only_candidate), str(contrast.only_reference))


def test_parts_mark_differences_that_exclude_zero(result):
    found = table(result, "Exact match by popularity")
    below = rows(found)["below 10"]
    assert found.heads[2:5] == ("closed book", "RAG", "RETRO") and below[1] == "0.0" and below[3].startswith("* ")
    assert sum(int(row.cells[1]) for row in found.rows) == 240


def test_recall_of_groups_stands_below_that_of_all(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    content = json.loads((path / EVALUATION / "results.json").read_text())
    content["retrieval"] |= {"n": 240, "by_group": {"squad": {"answer": {"1": 0.25, "10": 0.5}, "evidence": {}}}}
    write_json(path / EVALUATION / "results.json", content)
    (result,) = compare_runs(load_runs([path]), draws=200).qa
    found = table(result, "Recall")
    assert found.heads[1:] == ("k = 1", "k = 2", "k = 5", "k = 10")
    assert [row.group for row in found.rows] == ["all questions", "all questions", "squad"]
    assert found.rows[-1].cells == ("an answer", "25.0", "-", "-", "50.0")


def test_costs_are_in_milliseconds(result):
    cells = rows(table(result, "Cost per question"))
    assert cells["closed book"] == ("22.4", "5.2", "24.0", "0.0", "2.0")
    assert cells["RETRO++"][3] == "320.0"


def test_adaptive_retrieval_has_its_bounds(result):
    found = table(result, "Adaptive retrieval")
    assert [row.cells[0] for row in found.rows][:4] == [
        "never (closed book)", "always (RETRO)", "adaptive", "oracle: the better of both",
    ]  # fmt: skip
    accuracy = [float(row.cells[1].split(" ")[0]) for row in found.rows[:4]]
    assert accuracy[3] >= max(accuracy[:3])
    assert found.rows[0].cells[3] == "0.0" and found.rows[1].cells[3] == "100.0"
    adaptive = found.rows[2].cells
    assert all(re.fullmatch(r"[+-]?\d+\.\d \[.*\]", adaptive[i]) for i in (1, 3, 4, 5)) and float(adaptive[2]) > 0


def test_what_is_saved_of_the_price_stands_beside_the_time(tmp_path, result):
    path = build_qa_run(tmp_path / "retro", "retro", ("closed_book", "retro"))
    write_adaptive(
        path / EVALUATION, path / EVALUATION, prices=Prices("USD", per_token={"prompt": 1.0, "encoder": 1.0})
    )
    (priced,) = compare_runs(load_runs([path]), draws=200).qa
    found = table(priced, "Adaptive retrieval")
    assert found.heads[-1] == "cost saved, %" and table(result, "Adaptive retrieval").heads[-1] == "time saved, %"
    share, saved = (float(found.rows[2].cells[i].split(" ")[0]) for i in (3, 6))
    # Closed book costs 24, RETRO 24 + 320 a question.
    assert saved == pytest.approx((100 - share) * 320 / 344, abs=0.15)
    assert found.rows[0].cells[6] == ""


# ---------------------------------------------------------------- charts


def test_many_arms_leave_their_controls_out_of_the_popularity_chart(result):
    arms = ["closed_book", "rag", "rag/random", "retro", "retro/oracle", "retro/random", "retro/gate_0"]
    base = result.series[0]
    series = [dataclasses.replace(base, arm=arm, label=arm) for arm in arms]
    many = popularity_chart(dataclasses.replace(result, series=series))
    assert [line.label for line in many.lines] == ["closed_book", "rag", "retro"]
    assert many.caption.endswith("Controls are in the table.")
    few = popularity_chart(dataclasses.replace(result, series=series[1:]))
    assert [line.label for line in few.lines] == arms[1:] and "Controls" not in few.caption


def test_charts_of_popularity_passages_share_and_time(result):
    charts = {chart.title: chart for chart in qa_charts(result)}
    assert list(charts) == [
        "Exact match by popularity", "Exact match by number of passages", "Exact match against time",
        "Adaptive retrieval: accuracy against share retrieved", "Adaptive retrieval: accuracy against time",
    ]  # fmt: skip
    popularity = charts["Exact match by popularity"]
    bins = result.of_kind("popularity")
    assert len(popularity.lines) == 6 and not any(line.band for line in popularity.lines)
    for line, item in zip(popularity.lines, result.series, strict=True):
        assert line.y == [100 * result.score(item.key, b.key).value for b in bins]
    (passages,) = charts["Exact match by number of passages"].lines
    assert passages.x == [0, 1, 2] and passages.band and passages.low[0] < passages.y[0] < passages.high[0]
    times = {line.label: line.x for line in charts["Exact match against time"].lines}
    assert times["closed book"] == [pytest.approx(22.4)] and times["RETRO++"] == [pytest.approx(58.4)]
    share = charts["Adaptive retrieval: accuracy against share retrieved"].lines
    curve = share[0]
    assert curve.x[0] == 0.0 and curve.x[-1] == 1.0
    closed, retro = (next(s for s in result.series if s.arm == arm) for arm in ("closed_book", "retro"))
    assert curve.y[0] == pytest.approx(100 * result.score(closed.key).value)
    assert curve.y[-1] == pytest.approx(100 * result.score(retro.key).value)


def test_few_arms_have_bands(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    (result,) = compare_runs(load_runs([path]), draws=200).qa
    charts = qa_charts(result)
    assert charts[0].caption.startswith("Band: 95%") and all(line.band for line in charts[0].lines)
    assert render_report(load_runs([path]), compare_runs(load_runs([path]), draws=200)).count('class="band"') == 2


def test_without_latency_the_time_in_batches_is_drawn(tmp_path):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"), latency=False)
    (result,) = compare_runs(load_runs([path]), draws=200).qa
    (chart,) = [chart for chart in qa_charts(result) if chart.title == "Exact match against time"]
    assert chart.x_label == "seconds per question, in batches"


# ---------------------------------------------------------------- page and command


def test_page_is_whole_and_needs_no_network(paths, comparison):
    page = render_report(load_runs(paths), comparison)
    checker = check(page)
    text = "".join(checker.text)
    for part in ("Question answering: popqa, test", "points of exact match", "Every difference", "At equal steps"):
        assert part in text, part
    assert "No test evaluation" not in text and "no perplexity evaluation" not in text
    assert not re.search(r"https?://", page)
    links = [value for tag, name, value in checker.attributes if tag == "a" and name == "href"]
    assert links[0] == "#qa-1" and all(link[1:] in checker.ids for link in links)
    assert f"retro eval configs/eval/qa.yaml checkpoint={paths[0]}" in text
    assert render_report(load_runs(paths), compare_runs(load_runs(paths), draws=500)) == page


def test_text_of_others_is_escaped(tmp_path):
    gpt, retro = build_qa_pair(tmp_path / "runs")
    for path in (gpt, retro):
        for folder in (path / "eval").iterdir():
            lines = read_lines(folder / "responses.jsonl")
            write_lines(folder / "responses.jsonl", [{**row, "relation": row["relation"] + EVIL} for row in lines])
            content = json.loads((folder / "results.json").read_text())
            content["task_definition"]["name"] = EVIL
            content["baselines"] = {EVIL: {"exact_match": 0.5}}
            write_json(folder / "results.json", content)
    runs = load_runs([gpt, retro])
    checker = check(render_report(runs, compare_runs(runs, draws=200)))
    assert checker.tags.count("script") == 1 and "img" not in checker.tags
    assert not any(name.startswith("on") for _, name, _ in checker.attributes)
    assert "".join(checker.text).count("<script>alert(1)</script>") >= 6


def test_beside_perplexity_the_headline_stays_and_questions_follow(tmp_path):
    gpt, retro = build_pair(tmp_path / "runs", shape=SMALL)
    before = render_text(compare_runs(load_runs([gpt, retro]), draws=200), 100)
    write_qa(gpt, "gpt", ("closed_book",))
    write_qa(retro, "retro", ("retro",))
    after = render_text(compare_runs(load_runs([gpt, retro]), draws=200), 100)
    assert before.splitlines()[1] == after.splitlines()[1] and "bits per byte" in after.splitlines()[1]
    assert "exact match over 240 questions of popqa, test" in " ".join(after.split())
    assert set(before.splitlines()) <= set(after.splitlines())


@pytest.mark.parametrize("width", [80, 100, 120])
def test_tables_fit_the_terminal(comparison, width):
    lines = render_text(comparison, width).splitlines()
    assert max(map(len, lines)) <= width


def test_command_writes_page_and_numbers(paths, tmp_path, capsys):
    out, numbers = tmp_path / "out.html", tmp_path / "numbers.json"
    assert retro_main(["report", *map(str, paths), "-o", str(out), "--json", str(numbers), "--draws", "100"]) == 0
    assert "Arms side by side: popqa, test" in capsys.readouterr().out
    check(out.read_text(encoding="utf-8"))
    data = json.loads(numbers.read_text(), parse_constant=lambda name: pytest.fail(name))
    (found,) = data["qa"]
    assert found["task"] == "popqa" and {c["p"] is None for c in found["contrasts"]} == {False}
    assert {policy["kind"] for policy in found["adaptive"][0]["policies"]} == {"popularity", "confidence"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "adaptive.json: "),
        ("{}", "adaptive.json: no field 'format'"),
        ('{"format": 1, "task": "popqa", "split": "test"}', "adaptive.json: no field 'comparisons'"),
        (
            '{"format": 1, "task": "popqa", "split": "test", "comparisons": [{"arms": {"closed": "closed_book"}}]}',
            "adaptive.json: no field 'retrieval'",
        ),
    ],
)
def test_a_damaged_adaptive_file_is_named(tmp_path, content, message):
    path = build_qa_run(tmp_path / "gpt", "gpt", ("closed_book", "rag"))
    (path / EVALUATION / "adaptive.json").write_text(content)
    with pytest.raises(ArtifactCorruptError, match=message):
        compare_runs(load_runs([path]), draws=200)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (["format"], 2, "adaptive.json: expected format 1, found 2"),
        (["task"], "nq", "adaptive.json: expected figures of popqa, split test, found nq, split test"),
        (["split"], "dev", "adaptive.json: expected figures of popqa, split test, found popqa, split dev"),
        (["comparisons", 0, "questions"], math.inf, "adaptive.json: cannot convert float infinity to integer"),
        ([*POPULARITY, "curve"], [{"share": 0.1}], "adaptive.json: no field 'accuracy'"),
        ([*POPULARITY, "curve"], [{"accuracy": 0.1}], "adaptive.json: no field 'share'"),
    ],
)
def test_an_adaptive_file_of_something_else_is_refused(tmp_path, place, value, message):
    path = build_qa_run(tmp_path / "run", "retro", ("closed_book", "retro"), count=60)
    write_adaptive(path / EVALUATION, path / EVALUATION)
    content = json.loads((path / EVALUATION / "adaptive.json").read_text())
    inner = content
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (path / EVALUATION / "adaptive.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=message):
        compare_runs(load_runs([path]), draws=100)
