"""Prepared questions as training batches: where everything lies, which are left out, and that padding means nothing."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
import torch

from retro.config.errors import ArtifactMismatchError
from retro.config.model import EncoderConfig, ModelConfig
from retro.config.qa import QaLayoutConfig, parse_arm
from retro.data.qa.dataset import LeftOut, QaDataset
from retro.data.qa.examples import build_example
from retro.data.qa.layout import pad_neighbors, pad_questions
from retro.data.qa.task import TaskDefinition
from retro.inference.engine import Engine
from retro.inference.requests import EngineRequest
from retro.model import RetroModel
from tests.data.qa.questions import WordTokenizer, passage, question

TASK = TaskDefinition("toy")
LAYOUT = QaLayoutConfig(passages=3, passage_tokens=12, prompt_chunks=6, answer_tokens=8)
CHUNK = 8
# Prompts of one, two and three chunks; three, one and no passages.
QUESTIONS = [
    question(1, passages=[passage(1), passage(2, "short"), passage(3)]),
    question(2, passages=[passage(4, "a much longer text than the others have, with more words in it")]),
    dataclasses.replace(
        question(3, passages=[]),
        question=dataclasses.replace(question(3).question, question="what " * 13 + "?", answers=("a b c d",)),
    ),
]


def dataset(arm: str, questions=QUESTIONS, layout: QaLayoutConfig = LAYOUT, task=TASK) -> QaDataset:
    return QaDataset(questions, parse_arm(arm), layout, task, WordTokenizer(), CHUNK)


def model(retro: bool, positions: int | None = None) -> RetroModel:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=300, width=32, num_layers=3, num_heads=2, ffn_width=48, chunk_length=CHUNK, max_positions=positions,
        positions="rotary" if positions is None else "learned",
        cross_attention_layers=(2, 3) if retro else (),
        encoder=EncoderConfig(num_layers=2, cross_attention_layers=(2,)) if retro else EncoderConfig(),
    )  # fmt: skip
    return RetroModel(config).eval()


def test_answers_follow_their_prompts():
    padded = pad_questions([[5, 6, 7], [1, 3]], [[8, 2], [9, 4, 4, 2]], 0)
    assert padded.tokens.tolist() == [[5, 6, 7, 8, 2], [1, 3, 9, 4, 4]]
    assert padded.targets.tolist() == [[6, 7, 8, 2, 0], [3, 9, 4, 4, 2]]
    assert padded.scored.astype(int).tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert padded.prompt_ends.tolist() == [2, 1]
    assert pad_questions([[5] * 8], [[2]], 0).tokens.shape == (1, 8)
    assert pad_questions([[5] * 8], [[1, 2]], 0, multiple=8).tokens.shape == (1, 16)


def test_neighbors_are_as_many_and_as_long_as_needed():
    tokens, mask = pad_neighbors([[[1, 2], [3]], []], 0)
    assert tokens.tolist() == [[[[1, 2], [3, 0]]], [[[0, 0], [0, 0]]]]
    assert mask.tolist() == [[[[True, True], [True, False]]], [[[False, False], [False, False]]]]
    assert pad_neighbors([[], []], 0)[0].shape == (2, 1, 1, 1)


def test_only_the_answer_and_its_end_are_scored():
    data = dataset("retro++")
    for index, answer in ((0, " a1"), (2, " a b c d")):
        found = data[index]
        scored = found.targets_BN[found.loss_mask_BN].tolist()
        assert data.tokenizer.decode(scored) == answer and scored[-1] == data.tokenizer.eos_id
        begin = found.tokens_BN.shape[1] + 1 - len(scored)
        assert found.loss_mask_BN[0].nonzero()[0].tolist() == list(range(begin - 1, begin - 1 + len(scored)))
        assert found.chunk_ends_BL.tolist() == [[begin - 1]]
    # A batch is as wide as its longest prompt needs, and no wider.
    widths = [data[i].tokens_BN.shape[1] for i in (0, 1, 2)]
    assert widths[0] < widths[1] == data.__getitems__([0, 1]).tokens_BN.shape[1]
    assert dataset("closed_book")[0].tokens_BN.shape == (1, 11)  # ten tokens and one of the answer
    assert dataset("rag")[0].neighbors_BLKR is None
    assert data.__getitems__([2]).neighbor_mask_BLKR.sum() == 0


@pytest.mark.parametrize("arm", ["closed_book", "rag", "retro", "retro++"])
@pytest.mark.parametrize("positions", [None, 64])
def test_a_padded_batch_is_each_question_alone_and_what_is_generated(arm: str, positions: int | None):
    """Logits of every scored position to 1e-5: in a batch, alone without padding, and from the engine."""
    data = dataset(arm)
    reader = model(arm.startswith("retro"), positions)
    batch = data.__getitems__([0, 1, 2]).to_torch()
    inputs = {name: value for name, value in batch.model_inputs.items() if name not in ("targets_BN", "loss_mask_BN")}
    with torch.no_grad():
        together = reader(**inputs).logits
        for row, prepared in enumerate(QUESTIONS):
            example = build_example(prepared, parse_arm(arm), LAYOUT, TASK, data.tokenizer, chunk_length=CHUNK)
            padded = together[row][batch.loss_mask_BN[row]]
            alone = reader(**lone_inputs(example)).logits[0, len(example.prompt) - 1 : -1]
            torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)
            engine = Engine(
                reader, data.tokenizer, window_length=56, slots=2, num_neighbors=max(1, len(example.neighbors)),
                neighbor_length=LAYOUT.passage_tokens,
            )  # fmt: skip
            request = EngineRequest(example.prompt, 6, neighbors=example.neighbors, logprobs=0)
            (update,) = engine.run([request])
            new = update.finished.new_tokens
            whole = dataclasses.replace(example, answer=(*new, 0))
            expected = reader(**lone_inputs(whole)).logits[0, len(example.prompt) - 1 : -1].log_softmax(-1)
            chosen = expected[torch.arange(len(new)), torch.tensor(new)]
            found = torch.tensor(update.finished.token_logprobs[: len(new)])
            torch.testing.assert_close(found, chosen, atol=1e-5, rtol=0)


def lone_inputs(example) -> dict:
    """The question by itself: its tokens and nothing else, chunks counted back from the prompt's last token."""
    tokens = torch.tensor([[*example.prompt, *example.answer]])
    if not example.neighbors:
        return {"tokens_BN": tokens}
    neighbors, mask = (torch.from_numpy(part) for part in pad_neighbors([example.neighbors], 0))
    ends = torch.tensor([[len(example.prompt) - 1]])
    return {
        "tokens_BN": tokens, "neighbors_BLKR": neighbors.long(), "neighbor_mask_BLKR": mask, "chunk_ends_BL": ends
    }  # fmt: skip


def test_padding_on_the_left_to_whole_chunks_is_the_same():
    """The paper's layout, with the padding as a document of its own, which nothing of the question attends to."""
    data, reader = dataset("retro++"), model(True)
    batch = data.__getitems__([0, 1, 2])
    rows, width = batch.tokens_BN.shape
    most = -(-(batch.chunk_ends_BL.max() + 1) // CHUNK) * CHUNK
    tokens, targets = (np.full((rows, most + CHUNK), 77, dtype=np.int32) for _ in range(2))
    starts, scored = np.zeros_like(tokens), np.zeros(tokens.shape, dtype=bool)
    for row in range(rows):
        begin = most - int(batch.chunk_ends_BL[row, 0]) - 1
        kept = min(width, most + CHUNK - begin)
        for new, old in ((tokens, batch.tokens_BN), (targets, batch.targets_BN), (scored, batch.loss_mask_BN)):
            new[row, begin : begin + kept] = old[row, :kept]
        starts[row, begin:] = begin
    padded = dataclasses.replace(
        batch, tokens_BN=tokens, targets_BN=targets, loss_mask_BN=scored, document_starts_BN=starts,
        chunk_ends_BL=np.full((rows, 1), most - 1),
    )  # fmt: skip
    found = []
    for one in (batch, padded):
        with torch.no_grad():
            losses = reader(**one.to_torch().model_inputs).token_losses_BN
        found.append(losses[torch.from_numpy(one.loss_mask_BN)])
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)


def test_what_padding_holds_is_irrelevant():
    data, reader = dataset("retro++"), model(True)
    batch = data.__getitems__([0, 1, 2])
    other = batch.tokens_BN.copy()
    for row, end in enumerate(batch.chunk_ends_BL[:, 0].tolist()):
        other[row, end + 1 + batch.loss_mask_BN[row].sum() :] = 77
    losses = []
    for tokens in (batch.tokens_BN, other):
        inputs = dataclasses.replace(batch, tokens_BN=tokens).to_torch().model_inputs
        with torch.no_grad():
            losses.append(reader(**inputs).token_losses_BN)
    assert (other != batch.tokens_BN).any()
    assert torch.equal(*losses)


def test_questions_that_do_not_fit_are_left_out_and_counted():
    long = dataclasses.replace(question(5).question, question="word " * 60)
    wordy = dataclasses.replace(question(6).question, answers=("one two three four five six seven eight",))
    questions = [*QUESTIONS, *(dataclasses.replace(question(5), question=asked) for asked in (long, wordy))]
    data = dataset("retro", questions)
    assert (len(data), data.left_out) == (3, LeftOut(1, 1, 0))
    regex = dataclasses.replace(TASK, answers_are="regex", metrics=("regex",), primary="regex")
    with pytest.raises(ArtifactMismatchError, match=r"questions: expected questions to train on, found 3, .* 3 none"):
        dataset("retro", task=regex)


def test_a_data_set_can_be_sent_to_workers_and_repeats_itself():
    data = dataset("retro++")
    data.__getitems__([0, 1])
    sent = pickle.loads(pickle.dumps(data))
    for first, second in ((data[1], sent[1]), (data[1], data[1])):
        assert np.array_equal(first.tokens_BN, second.tokens_BN)
        assert np.array_equal(first.neighbors_BLKR, second.neighbors_BLKR)


def test_estimated_lengths_order_as_tokens_do():
    lengths = dataset("closed_book").estimated_lengths()
    assert lengths.argmax() == 2
    assert dataset("rag").estimated_lengths().argmax() in (1, 2)
    retro = dataset("retro").estimated_lengths()
    assert retro[0] != lengths[0] and int(retro[0]) == int(lengths[0])
