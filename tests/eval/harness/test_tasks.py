"""Tasks of the harness out of local files, and whole evaluations with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from retro.config.errors import ArtifactCorruptError, ArtifactMissingError, ConfigError
from retro.eval.harness import tasks_folder
from retro.eval.harness.local_files import find_local, read_rows
from tests.eval.workspace import documentation

NAMES = sorted(path.stem for path in tasks_folder().glob("*.yaml"))
_CHOICES = {"choices": ["the rows.", "the columns."], "gold": 1}
_OPTIONS = {"context_options": ["The sum and the mean: the sum", "The sum and the mean: the mean"], "gold": 0}
#: Per task: its file, two lines of it, and what the first is asked as: (context, continuation) and the answer.
LINES = {
    "local_arc_easy": ("arc_easy.jsonl", {**_CHOICES, "query": "Question: Which?"}),
    "local_arc_challenge": ("arc_challenge.jsonl", {**_CHOICES, "query": "Question: Which?"}),
    "local_boolq": ("boolq.jsonl", {"query": "Passage: It is.\nQuestion: is it?", "choices": ["no", "yes"], "gold": 1}),
    "local_openbookqa": ("openbook_qa.jsonl", {**_CHOICES, "query": "The mean is that of"}),
    "local_piqa": ("piqa.jsonl", {**_CHOICES, "query": "Question: Which?\n"}),
    "local_copa": ("copa.jsonl", {**_CHOICES, "query": "He sorted, therefore"}),
    "local_winogrande": ("winogrande.jsonl", {**_OPTIONS, "continuation": "is larger."}),
    "local_wsc273": ("winograd_wsc.jsonl", {**_OPTIONS, "continuation": "is larger."}),
    "local_lambada": ("lambada_openai.jsonl", {"context": "Return the mean of all", "continuation": "rows"}),
    "local_rte": ("RTE_val.jsonl", {"premise": "It is.", "hypothesis": "Is it.", "label": "not_entailment"}),
    "local_cb": ("CB_val.jsonl", {"premise": "It is.", "hypothesis": "it is", "label": "neutral"}),
    "local_wic": (
        "WiC_val.jsonl",
        {"sentence1": "A mean day.", "sentence2": "The mean.", "start1": 2, "end1": 6, "label": "false"},
    ),
    "local_anli_r2": ("anli_r2_dev.csv", {"context": 'It "is", yes.', "statement": "Is it.", "gold_label": "c"}),
    "local_wikitext2": ("wikitext2_valid.txt", None),
}
ASKED = {
    "local_arc_easy": ("Question: Which?\nAnswer:", " the columns."),
    "local_arc_challenge": ("Question: Which?\nAnswer:", " the columns."),
    "local_boolq": ("Passage: It is.\nQuestion: is it?\nAnswer:", " yes"),
    "local_openbookqa": ("The mean is that of", " the columns."),
    "local_piqa": ("Question: Which?\nAnswer:", " the columns."),
    "local_copa": ("He sorted, therefore", " the columns."),
    "local_winogrande": ("The sum and the mean: the sum", " is larger."),
    "local_wsc273": ("The sum and the mean: the sum", " is larger."),
    "local_lambada": ("Return the mean of all", " rows"),
    "local_rte": ("It is.\nQuestion: Is it. True or False?\nAnswer:", " False"),
    "local_cb": ("It is.\nQuestion: it is. True, False, or Neither?\nAnswer:", " Neither"),
    "local_wic": (
        "Sentence 1: A mean day.\nSentence 2: The mean.\nQuestion: Is the word 'mean' used in the same way in the two "
        "sentences above?\nAnswer:",
        " no",
    ),
    "local_anli_r2": ('It "is", yes.\nQuestion: Is it. True, False, or Neither?\nAnswer:', " False"),
    "local_wikitext2": (" = Mean =\n\nThe mean, as said.\n\n== Use ==\n\nOf rows.\n\n",),
}
ARTICLES = (
    " \n = Mean = \n \n The mean , as said . \n \n = = Use = = \n \n Of rows . \n \n = Sum = \n \n The sum of rows . \n"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with files of the shapes that the tasks read, some of them one folder below."""
    folder = tmp_path_factory.mktemp("local")
    (folder / "below").mkdir()
    for name, line in LINES.values():
        path = folder / name
        if line is None:
            path.write_text(ARTICLES)
        elif path.suffix == ".csv":
            quoted = ",".join('"' + value.replace('"', '""') + '"' for value in line.values())
            path.write_text(f"{','.join(line)}\n{quoted}\n{quoted}\n")
        else:
            (folder / "below" / name).write_text(f"{json.dumps(line)}\n{json.dumps(line)}\n")
    return folder


@pytest.fixture(scope="module")
def manager(data):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=str(tasks_folder()), include_defaults=False, metadata={"data": str(data)})


def test_every_task_is_tested_here(manager):
    assert NAMES == sorted(LINES) == sorted(ASKED)
    assert set(manager.match_tasks(["local_*"])) == set(NAMES)
    assert set(manager.load(["retro_local"])["tasks"]) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_task_asks_and_what_is_right(manager, name):
    (task,) = manager.load([name])["tasks"].values()
    task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(rank=0, world_size=1)
    assert len(task.eval_docs) == 2
    first = [instance.args for instance in task.instances if instance.doc_id == 0]
    right = task.doc_to_target(task.eval_docs[0])
    if name in ("local_winogrande", "local_wsc273"):  # the contexts are the choices
        right = task.doc_to_text(task.eval_docs[0])
    expected = ASKED[name]
    assert first[right if isinstance(right, int) else 0] == expected
    assert len(set(first)) == len(first) in (1, 2, 3)


def test_articles_are_cut_at_their_titles(data):
    pages = read_rows(data / "wikitext2_valid.txt")
    assert [page["page"].split("\n")[0] for page in pages] == [" = Mean = ", " = Sum = "]
    assert pages[0]["page"].count("= = Use = =") == 1 and pages[1]["page"].endswith("rows . \n")


def test_what_cannot_be_read_is_said(tmp_path):
    from retro.eval.harness.local_files import read_local

    pytest.importorskip("datasets")
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": \n')
    (tmp_path / "b.jsonl").write_text("[1]\n")
    (tmp_path / "c.jsonl").write_text("\n")
    (tmp_path / "d.txt").write_bytes(b"\xff")
    (tmp_path / "e.xml").write_text("<x/>")
    for name, message in (
        ("a.jsonl", "a.jsonl:3: not JSON"),
        ("b.jsonl", "b.jsonl:1: expected an object, found list"),
        ("c.jsonl", "expected at least one example, found none"),
        ("d.txt", "not readable as UTF-8"),
    ):
        with pytest.raises(ArtifactCorruptError, match=message):
            read_local(local_file=name, data=str(tmp_path), version=1.0)
    with pytest.raises(ConfigError, match=r"expected a \.jsonl, \.csv or \.txt file"):
        read_rows(tmp_path / "e.xml")
    with pytest.raises(ConfigError, match="give --metadata data=FOLDER"):
        read_local(local_file="a.jsonl")
    with pytest.raises(ArtifactMissingError, match=r"no file z\.jsonl there"):
        find_local(tmp_path, "z.jsonl")


def own_tasks(folder: Path) -> None:
    """Tasks of a user: one of each kind of request, over the tiny corpus's own sentences."""
    lines = [record["text"].split("\n")[2] for record in documentation(24)]
    rows = [{"begin": line[:24], "end": line[24:], "other": lines[i - 5][20:]} for i, line in enumerate(lines)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = (
        f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {folder / 'rows.jsonl'}\ntest_split: test\n"
    )
    (folder / "own_choice.yaml").write_text(
        f'task: own_choice\n{shared}output_type: multiple_choice\ndoc_to_text: begin\ndoc_to_target: "{{{{0}}}}"\n'
        'doc_to_choice: "{{[end, other]}}"\ntarget_delimiter: ""\nmetric_list:\n  - metric: acc\n  - metric: acc_norm\n'
    )
    (folder / "own_text.yaml").write_text(
        f'task: own_text\n{shared}output_type: loglikelihood_rolling\ndoc_to_text: ""\n'
        'doc_to_target: "{{begin + end}}"\nmetric_list:\n  - metric: word_perplexity\n  - metric: bits_per_byte\n'
    )
    (folder / "own_writing.yaml").write_text(
        f"task: own_writing\n{shared}output_type: generate_until\ndoc_to_text: begin\ndoc_to_target: end\n"
        'generation_kwargs:\n  until: ["\\n", "."]\n  max_gen_toks: 20\nmetric_list:\n  - metric: exact_match\n'
    )


def evaluated(model, arguments, folder, limit=None):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = ["own_choice", "own_text", "own_writing"]
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        model=model, model_args=arguments, tasks=tasks, task_manager=manager, bootstrap_iters=0, limit=limit
    )


def test_simple_evaluate_gives_the_numbers_of_the_exported_gpt(runs, tmp_path):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    pytest.importorskip("transformers", reason="the harness's own model needs transformers")
    import retro.eval.harness.model  # noqa: F401 - registers

    own_tasks(tmp_path)
    ours = evaluated("retro", f"checkpoint={runs.gpt},batch_size=4", tmp_path)
    theirs = evaluated("hf", f"pretrained={runs.exported},dtype=float32,device=cpu", tmp_path)
    for task, metrics in theirs["results"].items():
        for metric, value in metrics.items():
            if isinstance(value, float):
                assert ours["results"][task][metric] == pytest.approx(value, abs=1e-4, rel=1e-6), (task, metric)
        for a, b in zip(ours["samples"][task], theirs["samples"][task], strict=True):
            assert a["doc_hash"] == b["doc_hash"]
            if task != "own_writing":
                assert a["filtered_resps"] == [pytest.approx(x, abs=1e-4, rel=1e-6) for x in b["filtered_resps"]], task
            else:
                assert a["filtered_resps"] == b["filtered_resps"]
    assert ours["results"]["own_choice"]["acc,none"] > 0.5  # and not by chance alone
    assert ours["config"]["model_identity"]["retrieve"] == "off"


def test_simple_evaluate_with_retrieval(runs, tmp_path):
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness")
    import retro.eval.harness.model  # noqa: F401 - registers

    own_tasks(tmp_path)
    on, off = (
        evaluated("retro", {"checkpoint": str(runs.retro), "batch_size": 4, "retrieve": mode}, tmp_path, limit=6)
        for mode in ("on", "off")
    )
    differs = [on["results"]["own_text"][m] - off["results"]["own_text"][m] for m in ("bits_per_byte,none",)]
    assert abs(differs[0]) > 1e-4
    assert on["config"]["model_identity"]["retriever"] and off["config"]["model_identity"]["retriever"] is None


def test_local_tasks_through_simple_evaluate(runs, data, manager):
    from lm_eval import simple_evaluate

    import retro.eval.harness.model  # noqa: F401 - registers

    found = simple_evaluate(
        model="retro",
        model_args={"checkpoint": str(runs.retro)},
        tasks=["retro_local"],
        task_manager=manager,
        bootstrap_iters=0,
    )
    assert set(found["results"]) == set(NAMES)
    assert found["results"]["local_wikitext2"]["word_perplexity,none"] > 1
    assert 0 <= found["results"]["local_boolq"]["acc,none"] <= 1
