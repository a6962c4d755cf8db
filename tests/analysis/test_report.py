"""The page and the terminal: escaping, nesting, self-containedness, determinism, gaps."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from retro.analysis.comparison import compare_runs
from retro.analysis.html_report import render_report
from retro.analysis.reader import Token, clean, level, read_samples
from retro.analysis.runs import load_runs
from retro.analysis.svg import Chart, Line, nice_ticks, render, tick_label
from retro.analysis.tables import render_text
from retro.cli.main import main as retro_main
from retro.cli.report import main
from retro.config.errors import ArtifactCorruptError, ConfigError
from tests.analysis.builders import Shape, build_pair, build_run, write_json

SMALL = Shape(documents=8, chunks=48, samples=3, questions=30)
VOID = {"meta", "input", "br", "hr", "img", "link"}
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp; \ud800 \x00 end"


class Checker(HTMLParser):
    """Fails on wrongly nested tags; collects ids, attributes and visible text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids.append(value)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    return checker


def test_page_is_well_nested_and_whole(page):
    checker = check(page)
    text = "".join(checker.text)
    for part in (
        "bits per byte",
        "At equal steps",
        "At equal training time",
        "Leakage curve",
        "Gain over GPT by overlap",
        "Loss by position in the chunk",
        "Training throughput",
        "most frequent answer",
        "Its neighbors",
        "Versions and hardware",
        "Example CPU @ 2.90GHz",
        "retro train",
    ):
        assert part in text, part
    assert checker.tags.count("svg") > 7
    links = [value for tag, name, value in checker.attributes if tag == "a" and name == "href"]
    assert links and all(link[0] == "#" and link[1:] in checker.ids for link in links)
    labels = [value for tag, name, value in checker.attributes if tag == "label" and name == "for"]
    assert labels and set(labels) <= set(checker.ids)


def test_page_needs_no_network(page):
    checker = check(page)
    for tag, name, value in checker.attributes:
        if name in ("src", "href", "action", "srcset", "data", "poster", "xlink:href"):
            assert value.startswith("#"), (tag, name, value)
    assert "link" not in checker.tags and "iframe" not in checker.tags and "img" not in checker.tags
    assert not re.search(r"https?://", page)
    assert not re.search(r"@import|url\((?!#chart-\d+-clip\))", page)


def test_same_input_same_bytes(pair, comparison, page):
    assert render_report(pair, compare_runs(pair)) == page
    assert render_text(compare_runs(pair), 100) == render_text(comparison, 100)


def test_text_of_others_is_escaped(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    samples = json.loads((paths[1] / "eval/perplexity-test/samples.json").read_text())
    samples[0]["pieces"][3] = EVIL
    samples[0]["document"] = EVIL
    samples[0]["context"] = EVIL
    samples[0]["neighbors"] = [
        {"document": EVIL, "chunk": 1, "text": EVIL, "continuation": "a b c d e " + EVIL, "distance": 0.5}
    ]
    write_json(paths[1] / "eval/perplexity-test/samples.json", samples)
    write_json(paths[1] / "environment.json", {"cpu " + EVIL[:30]: EVIL})
    (paths[1] / "config.yaml").write_text((paths[1] / "config.yaml").read_text() + "note: '<b onclick=x>'\n")
    runs = load_runs(paths)
    page = render_report(runs, compare_runs(runs), title=EVIL)
    checker = check(page)
    assert checker.tags.count("script") == 1 and "img" not in checker.tags and "b onclick" not in str(checker.tags)
    assert not any(name.startswith("on") for _, name, _ in checker.attributes)
    assert "".join(checker.text).count("<script>alert(1)</script>") >= 6
    assert "\x00" not in page
    page.encode("utf-8")


def test_hostile_names_in_svg_data_are_escaped():
    svg = render(Chart('<a "b">', "<x>", "<y>", [Line("</svg>'\"&", "on", [1, 2], [1, 2])]), "c")
    checker = check(svg)
    (data,) = [value for _, name, value in checker.attributes if name == "data-lines"]
    assert json.loads(data)["lines"][0]["label"] == "</svg>'\"&"


def test_missing_parts_leave_a_page_with_a_note(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    for path in paths:
        shutil.rmtree(path / "eval")
        (path / "environment.json").unlink()
        (path / "release.json").unlink()
    runs = load_runs(paths)
    page = render_report(runs, compare_runs(runs))
    text = "".join(check(page).text)
    assert "At equal steps" in text and "Leakage curve" not in text and "Its neighbors" not in text
    assert f"retro eval configs/eval/perplexity.yaml checkpoint={paths[0]}" in text


def test_evaluation_without_training_and_without_samples(tmp_path):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    for path in paths:
        (path / "metrics.jsonl").unlink()
        (path / "config.yaml").unlink()
    (paths[1] / "eval/perplexity-test/samples.json").unlink()
    runs = load_runs(paths)
    text = "".join(check(render_report(runs, compare_runs(runs))).text)
    assert "Leakage curve" in text and "At equal steps" not in text and "reader is missing" in text


def test_without_log_probabilities_there_is_no_position_chart(tmp_path):
    from tests.analysis.builders import read_lines, write_lines

    paths = build_pair(tmp_path / "runs", shape=SMALL)
    responses = paths[0] / "eval/perplexity-test/responses.jsonl"
    write_lines(responses, [{**row, "logprobs": {}} for row in read_lines(responses)])
    runs = load_runs(paths)
    found = compare_runs(runs)
    assert found.main_perplexity.positions is None
    text = "".join(check(render_report(runs, found)).text)
    assert "Loss by position" not in text and "Leakage curve" in text


def test_one_run_alone(tmp_path):
    for model in ("gpt", "retro"):
        runs = load_runs([build_run(tmp_path / model, model, shape=SMALL)])
        text = "".join(check(render_report(runs, compare_runs(runs))).text)
        assert "One run only" in text


def test_controls_of_one_run_are_shown_against_its_main_mode(tmp_path):
    runs = load_runs([build_run(tmp_path / "retro", "retro", shape=SMALL)])
    found = compare_runs(runs)
    (questions,) = found.questions
    on, off = (next(s for s in questions.scores if s.series == f"retro/{mode}") for mode in ("on", "off"))
    expected = 100 * (off.exact_match.value - on.exact_match.value)
    line = next(line for line in render_text(found, 200).splitlines() if "retrieval off" in line and "%" not in line)
    assert f"{expected:+.1f} [" in line


# ---------------------------------------------------------------- the reader


def test_gain_of_a_token_is_in_bits():
    token = Token("x", {"on": -0.5, "off": -1.9, "gpt": -0.2})
    assert token.gain("off") == pytest.approx(1.4 / 0.6931471805599453)
    assert token.gain("gpt") == pytest.approx(-0.3 / 0.6931471805599453)
    assert token.gain("shuffled") is None
    assert [level(g) for g in (None, 0.2, 0.25, 1.5, 9, -0.2, -2.5)] == ["", "", "p1", "p2", "p4", "", "m3"]


def test_reader_joins_gpt_and_leaves_the_first_token_unscored(pair):
    run, samples = read_samples(pair, "perplexity-test")
    assert run.name == "demo-retro" and len(samples) == 12
    rows = {row["chunk"]: row for row in pair[0].evaluations["perplexity-test"].responses}
    for sample in samples:
        scored = [t for t in sample.tokens if t.logprobs]
        assert [t.logprobs["gpt"] for t in scored] == rows[sample.chunk]["logprobs"]["off"]
        assert sample.bits("gpt") == pytest.approx(rows[sample.chunk]["bits"]["off"], abs=0.01)
    first = next(sample for sample in samples if sample.document_chunk == 0)
    assert first.tokens[0].logprobs == {} and all(token.logprobs for token in first.tokens[1:])
    assert first.neighbors == ()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.pop("pieces"), "sample 1: no field 'pieces'"),
        (lambda s: s.update(pieces=s["pieces"][:3]), "as many log-probabilities as tokens"),
        (lambda s: s["logprobs"].update(off=[-1.0]), "as many log-probabilities as tokens"),
        (lambda s: s["neighbors"].append({"document": "d"}), "no field 'text'"),
    ],
)
def test_wrong_samples_are_corrupt(tmp_path, edit, message):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    path = paths[1] / "eval/perplexity-test/samples.json"
    samples = json.loads(path.read_text())
    edit(samples[0])
    write_json(path, samples)
    runs = load_runs(paths)
    with pytest.raises(ArtifactCorruptError, match=message):
        render_report(runs, compare_runs(runs))


def test_clean_keeps_text_and_replaces_the_rest():
    assert clean("a\tb\r\nc\x00\x1b[31m é 漢 \ud800") == "a\tb\nc��[31m é 漢 ?"


# ---------------------------------------------------------------- charts


def test_ticks_are_round_and_inside():
    assert nice_ticks(0, 10) == [0, 2, 4, 6, 8, 10]
    assert nice_ticks(2.13, 2.41) == pytest.approx([2.15, 2.2, 2.25, 2.3, 2.35, 2.4])
    assert nice_ticks(-1e-9, 1e-9)[0] >= -1e-9
    assert [tick_label(t, [0, 0.05, 0.1]) for t in (0, 0.05, 0.1)] == ["0.00", "0.05", "0.10"]
    assert tick_label(20000, [0, 10000, 20000]) == "20k" and tick_label(-0.5, [-0.5, 0]) == "−0.5"


def test_gaps_break_a_line_and_constant_data_have_a_range():
    svg = render(Chart("t", "x", "y", [Line("l", "on", [1, 2, 3, 4, 5], [1.0, 1.0, None, 1.0, 1.0])]), "c")
    assert svg.count('<path class="line"') == 2 and "nan" not in svg.lower().replace("nance", "")


def test_points_lie_inside_the_frame(page):
    for data in re.findall(r'data-lines="([^"]*)"', page):
        import html

        for line in json.loads(html.unescape(data))["lines"]:
            assert all(0 <= point[0] <= 480 for point in line["points"])


# ---------------------------------------------------------------- the command


def test_command_writes_page_and_numbers(tmp_path, capsys, pair_paths):
    out, numbers = tmp_path / "deep" / "out.html", tmp_path / "numbers.json"
    assert main([*map(str, pair_paths), "-o", str(out), "--json", str(numbers), "--draws", "200"]) == 0
    printed = capsys.readouterr().out
    assert "RETRO" in printed and "Question answering" in printed and str(out) in printed
    check(out.read_text(encoding="utf-8"))
    data = json.loads(numbers.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert data["draws"] == 200 and data["perplexity"][0]["main"] == ["demo-gpt/off", "demo-retro/on"]


def test_default_output_lies_beside_the_runs(tmp_path, capsys):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    assert main([*map(str, paths)]) == 0
    assert (tmp_path / "runs" / "report.html").is_file()


def test_text_only_writes_nothing(tmp_path, capsys):
    paths = build_pair(tmp_path / "runs", shape=SMALL)
    assert main([*map(str, paths), "--text-only"]) == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["demo-gpt", "demo-retro"]
    with pytest.raises(ConfigError, match="exclude each other"):
        main([*map(str, paths), "--text-only", "-o", str(tmp_path / "x.html")])


def test_seed_and_draws_change_the_intervals_only(tmp_path, pair):
    first, second = compare_runs(pair, seed=0), compare_runs(pair, seed=1)
    a, b = (c.main_perplexity.contrast("demo-retro/on", "demo-gpt/off").gain for c in (first, second))
    assert a.value == b.value and a.low != b.low


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report"], 2, "required: RUN"),
        (["report", "missing/run"], 3, "error: missing/run: no such run folder"),
        (["report", "missing/run", "--nonsense"], 2, "unrecognized arguments"),
        (["report", "missing/run", "--seed", "-1"], 2, "seed: expected 0 or more"),
    ],
)
def test_mistakes_have_exit_codes_and_no_traceback(capsys, arguments, code, message):
    assert retro_main(arguments) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_output_that_is_a_folder_is_refused(tmp_path, capsys, pair_paths):
    assert retro_main(["report", *map(str, pair_paths), "-o", str(tmp_path), "--draws", "100"]) == 2
    assert "found a folder" in capsys.readouterr().err


@pytest.mark.parametrize("width", [60, 80, 100, 120])
def test_tables_fit_the_terminal(comparison, width):
    lines = render_text(comparison, width).splitlines()
    if width >= 80:
        assert max(map(len, lines)) <= width
    assert any(line.startswith("Bits per byte") for line in lines)


def test_analysis_imports_neither_torch_nor_plotting():
    import subprocess
    import sys

    code = (
        "import sys, retro.cli.report, retro.analysis.html_report, retro.analysis.tables; "
        "bad = {'torch', 'matplotlib', 'faiss', 'scipy', 'transformers'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True).returncode == 0
