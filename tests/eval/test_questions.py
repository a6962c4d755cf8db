"""Questions out of documentation: what is found, what is left out, the split, the layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data_prep.docs_questions import DocsQuestionsStage, limit_answers, question_split, questions_of
from data_prep.documented_values import documented_values, parse_header
from data_prep.question_sequences import lay_out
from data_prep.runner import Executor, run_stage
from retro.artifacts.manifest import input_path, open_manifest
from retro.config.errors import ArtifactCorruptError, ConfigError
from retro.config.evaluation import QuestionsConfig
from retro.data.chunk_store import open_chunk_store
from retro.data.document import Document, iter_documents
from retro.data.question_dataset import (
    QuestionDataset,
    open_question_sequences,
    question_database,
    shuffled_rows,
)
from retro.data.questions import (
    Question,
    format_answer,
    format_prompt,
    open_questions,
    parse_answer,
    parse_question,
)
from retro.data.tokenizer import open_tokenizer
from tests.eval.workspace import CHUNK, Workspace

NUMPY = """pkg.sum(a, axis=None, dtype=None, keepdims=<no value>, where=...)

Sum of elements.

Parameters
----------
a : array_like
    Elements to sum.
axis : {None, int}, optional
    Axis to sum over. The default, axis=None, sums all.
    It defaults to None if nothing is said.
keepdims : bool, default False
    Keep the axes.
initial, other : float, optional
    Start value. Default is 0.5.
order : {'C', 'F'}, optional
    Layout. The default is
    'C'.

Returns
-------
total : ndarray
    The sum.

Notes
-----
stray : int, default 9
"""
GOOGLE = """class pkg.AdamW(params, lr=0.001, betas=(0.9, 0.999), weight_decay=1e-2)

Args:
    params (iterable): what to optimise
    eps (float, optional): for stability (default: 1e-8)
    amsgrad (bool, optional): whether to use the variant.
        Default: ``False``
    weight_decay (float): decay. Default: ``0.01``

Returns:
    torch.Tensor: the loss

Example:
    x (int): default 7
"""
SPHINX = """pkg.connect(host)

:param host: name of the host
:param int port: port number, defaults to 8080
:param mode: defaults to fast if the host is near
:type mode: str, default "slow"
:rtype: :class:`~pkg.Connection`
"""


def found(text):
    return {(v.kind, v.parameter): v.answers for v in documented_values(text)}


def test_numpy_sections():
    assert found(NUMPY) == {
        ("default", "axis"): ("None",),
        ("default", "dtype"): ("None",),
        ("default", "keepdims"): ("False",),
        ("default", "initial"): ("0.5",),
        ("default", "other"): ("0.5",),
        ("default", "order"): ("'C'",),
        ("return_type", ""): ("ndarray",),
    }


def test_google_sections_and_both_answers_where_header_and_prose_differ():
    assert found(GOOGLE) == {
        ("default", "lr"): ("0.001",),
        ("default", "betas"): ("(0.9, 0.999)",),
        ("default", "weight_decay"): ("1e-2", "0.01"),
        ("default", "eps"): ("1e-8",),
        ("default", "amsgrad"): ("False",),
        ("return_type", ""): ("torch.Tensor",),
    }


def test_sphinx_fields_and_conditional_defaults_are_no_defaults():
    assert found(SPHINX) == {
        ("default", "port"): ("8080",),
        ("default", "mode"): ('"slow"',),
        ("return_type", ""): ("pkg.Connection",),
    }


@pytest.mark.parametrize("text", [NUMPY, GOOGLE, SPHINX])
def test_every_answer_stands_verbatim_in_its_evidence_and_the_evidence_in_the_text(text):
    for value in documented_values(text):
        assert value.answers[0] in value.evidence and value.evidence in text and "\n" not in value.evidence


@pytest.mark.parametrize(
    ("header", "defaults", "returned"),
    [
        ("f(a, b=1, *, c='x, y', d=(1, 2)) -> int", {"b": "1", "c": "'x, y'", "d": "(1, 2)"}, "int"),
        ("f(a: float = 1e-05) -> dict[str, int] | None", {"a": "1e-05"}, "dict[str, int] | None"),
        ("f(a=1, b=2, ...)", {"a": "1", "b": "2"}, ""),
        ("f(a=lib.no_default, b=<object>, c=g(1, 2))", {"c": "g(1, 2)"}, ""),
        ("f(a=1", {}, ""),
        ("f(a='(')", {"a": "'('"}, ""),
        ("f() -> what this returns is a sentence that is much too long", {}, ""),
    ],
)
def test_headers(header, defaults, returned):
    assert parse_header(header) == (defaults, returned)


@pytest.mark.parametrize("text", ["", "plain prose about a default value of 3 things", "f(x)\n\nDefault behaviour."])
def test_prose_without_parameters_gives_nothing(text):
    assert documented_values(text) == []


def test_questions_of_a_document():
    document = Document("pkg.AdamW", GOOGLE, "pkg.AdamW", "x:1", "pkg", "train")
    questions = {q.parameter: q for q in questions_of(document, max_answer_characters=10)}
    assert questions["lr"].question == "What is the default value of `lr` in pkg.AdamW?"
    assert questions["lr"].id == "pkg.AdamW#default:lr" and questions["lr"].document_split == "train"
    assert "betas" not in questions  # 12 characters
    assert "" not in questions  # torch.Tensor has 12 as well
    assert questions["weight_decay"].answers == ("1e-2", "0.01")
    assert questions["eps"].evidence == "eps (float, optional): for stability (default: 1e-8)"


def question(number, answer, kind="default"):
    return Question(str(number), "d", "train", kind, "p", "?", (answer,), answer)


def test_common_answers_are_limited_and_rare_ones_kept():
    answers = ["None"] * 50 + ["0"] * 20 + [str(i) for i in range(1, 31)]
    kept = limit_answers([question(i, a) for i, a in enumerate(answers)], 0.2)
    counts = [sum(q.answers[0] == a for q in kept) for a in ("None", "0")]
    # 10 None, 10 zeros and 30 others: 10 is 20 % of 50, and 11 would be 21 % of 52.
    assert counts == [10, 10] and len(kept) == 50
    assert limit_answers([question(0, "a")], 0.2) == [question(0, "a")]


def test_the_limit_holds_in_every_part_of_the_list():
    questions = [question(i, "None" if i % 2 else str(i)) for i in range(4000)]
    kept = limit_answers(questions, 0.2)
    assert [int(q.id) for q in kept] == sorted(int(q.id) for q in kept)
    for part in (kept, kept[:600], kept[-600:]):
        assert sum(q.answers[0] == "None" for q in part) / len(part) == pytest.approx(0.2, abs=0.05)


def test_the_split_depends_on_the_document_alone_and_has_about_its_share():
    config = QuestionsConfig(test_fraction=0.3)
    splits = [question_split(f"doc{i}", config) for i in range(2000)]
    assert 0.26 < splits.count("test") / 2000 < 0.34
    assert splits == [question_split(f"doc{i}", config) for i in range(2000)]
    assert splits != [question_split(f"doc{i}", QuestionsConfig(test_fraction=0.3, seed=1)) for i in range(2000)]


def questions_folder(workspace):
    sequences = workspace.release.questions["docs"]
    return input_path(sequences, open_manifest(sequences), "questions")


def test_no_document_is_asked_about_in_both_splits_and_all_are_in_the_database(workspace):
    folder = questions_folder(workspace)
    train, test = open_questions(folder, "train"), open_questions(folder, "test")
    assert len(train) > 50 and len(test) > 20
    assert not {q.document for q in train} & {q.document for q in test}
    assert len({q.id for q in train + test}) == len(train) + len(test)
    documents = {d.id: d for d in iter_documents(workspace.release.documents)}
    for q in train + test:
        document = documents[q.document]
        assert document.split == q.document_split == "train"
        assert q.evidence in document.text and q.answers[0] in q.evidence


def test_the_stage_is_the_same_for_any_number_of_workers_and_respects_its_limits(workspace, tmp_path):
    config = QuestionsConfig(max_train=30, max_test=10, max_per_document=1, test_fraction=0.4)
    stage = DocsQuestionsStage(config, workspace.release.documents)
    one = run_stage(stage, tmp_path / "one", Executor(1), progress=False)
    two = run_stage(stage, tmp_path / "two", Executor(2), progress=False)
    for split, most in (("train", 30), ("test", 10)):
        name = f"questions-{split}.jsonl"
        assert (one / name).read_bytes() == (two / name).read_bytes()
        questions = open_questions(one, split)
        assert 0 < len(questions) <= most
        assert len({q.document for q in questions}) == len(questions)


def test_layout_of_question_sequences():
    rows = lay_out([[1, 7, 8], [1, 2, 3, 4, 5]], [[9, 2], [6, 6, 6]], 2, 4, pad_id=0)
    assert rows.tolist() == [[0, 0, 0, 0, 0, 1, 7, 8, 9, 2, 0, 0], [0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6, 0]]


@pytest.fixture(scope="module")
def sequences(workspace):
    return open_question_sequences(workspace.release.questions["docs"], "test")


def make_dataset(workspace, sequences, retrieval, **fields):
    database = open_chunk_store(question_database(workspace.release.questions["docs"]))
    tokenizer = open_tokenizer(workspace.release.tokenizer)
    return QuestionDataset(sequences, database, 2, tokenizer.pad_id, retrieval, **fields), tokenizer


def test_the_loss_is_on_the_answer_and_its_end_only(workspace, sequences):
    dataset, tokenizer = make_dataset(workspace, sequences, "off")
    batch = dataset.__getitems__([3, 0])
    assert batch.neighbors_BLKR is None and batch.tokens_BN.shape == (2, sequences.sequence_length)
    for row, number in enumerate([3, 0]):
        asked = sequences.questions[number]
        scored = batch.targets_BN[row][batch.loss_mask_BN[row]].tolist()
        assert scored == [*tokenizer.encode(format_answer(asked.answers[0])), tokenizer.eos_id]
        first = int(np.flatnonzero(batch.loss_mask_BN[row])[0])
        # The prompt ends a chunk, and its last token predicts the answer's first.
        assert first == sequences.prompt_length - 1 and (first + 1) % CHUNK == 0
        prompt = batch.tokens_BN[row, : first + 1]
        text = prompt[prompt != tokenizer.pad_id].tolist()
        assert text == [tokenizer.bos_id, *tokenizer.encode(format_prompt(asked.question))]
        assert (prompt[: len(prompt) - len(text)] == tokenizer.pad_id).all()


def test_only_the_last_question_chunk_has_neighbors(workspace, sequences):
    dataset, _ = make_dataset(workspace, sequences, "on")
    batch = dataset.__getitems__(np.arange(len(dataset)))
    used = batch.neighbor_mask_BLKR.any(axis=(2, 3))
    assert used[:, sequences.question_chunks - 1].all() and used.sum() == len(dataset)
    expected, mask = dataset.database.gather_neighbors(sequences.neighbor_ids[:, :2], dataset.pad_id)
    assert (batch.neighbors_BLKR[:, sequences.question_chunks - 1] == expected).all()
    assert (batch.neighbor_mask_BLKR[:, sequences.question_chunks - 1] == mask).all()


def test_neighbors_of_the_answer_are_what_a_model_can_use(workspace, sequences):
    from retro.inference.checkpoint import open_checkpoint

    model = open_checkpoint(workspace.retro).load_model()
    losses = {}
    for retrieval in ("on", "off", "shuffled"):
        batch = make_dataset(workspace, sequences, retrieval)[0].__getitems__([0, 1, 2]).to_torch()
        output = model(
            batch.tokens_BN,
            batch.neighbors_BLKR,
            batch.neighbor_mask_BLKR,
            targets_BN=batch.targets_BN,
            loss_mask_BN=batch.loss_mask_BN,
        )
        losses[retrieval] = output.token_losses_BN[batch.loss_mask_BN].tolist()
    assert all(a != b for a, b in zip(losses["on"], losses["off"], strict=True))
    assert losses["on"] != losses["shuffled"]


def test_shuffled_neighbors_are_those_of_another_question(workspace, sequences):
    on, shuffled = (make_dataset(workspace, sequences, mode)[0].neighbor_ids for mode in ("on", "shuffled"))
    assert sorted(map(tuple, on.tolist())) == sorted(map(tuple, shuffled.tolist()))
    for rows in (2, 7, 100):
        partner = shuffled_rows(rows, seed=3)
        assert sorted(partner.tolist()) == list(range(rows)) and (partner != np.arange(rows)).all()


def test_wrong_options_of_the_dataset(workspace, sequences):
    with pytest.raises(ConfigError, match="expected one of on, off, shuffled"):
        make_dataset(workspace, sequences, "sometimes")
    with pytest.raises(ConfigError, match="needs the database"):
        QuestionDataset(sequences, None, 2, 0)
    with pytest.raises(ConfigError, match="expected 1 to the 10 stored, found 11"):
        QuestionDataset(sequences, make_dataset(workspace, sequences, "on")[0].database, 11, 0)
    with pytest.raises(ConfigError, match="train and test"):
        open_question_sequences(workspace.release.questions["docs"], "valid")


@pytest.mark.parametrize("line", [b"{}", b"nonsense", b'{"answers": []}'])
def test_broken_question_lines_are_named(line):
    with pytest.raises(ArtifactCorruptError, match="here:1: not a question"):
        parse_question(line, "here:1")


def test_format():
    assert format_prompt("Why?") + format_answer("so") == "question: Why?\nanswer: so"
    assert parse_answer(" so\nquestion: next") == "so"
    line = question(1, "é").line()
    assert json.loads(line)["answers"] == ["é"] and parse_question(line, "x") == question(1, "é")


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"not an array"])
def test_a_damaged_array_of_questions_is_one_line(workspace: Workspace, tmp_path: Path, content: bytes) -> None:
    folder = workspace.release.questions["docs"]
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    damaged = next(copy.glob("ids-test-*.npy"))
    # As long as before: the manifest's cheap check of sizes passes.
    damaged.write_bytes(content.ljust(damaged.stat().st_size, b"x"))
    with pytest.raises(ArtifactCorruptError, match=f"{damaged.name}: not a readable array"):
        open_question_sequences(copy, "test")
