"""Documents in a sequence, and chunks that end anywhere: parity with the position-by-position reference, isolation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from retro.config.model import ModelConfig
from retro.model import RetroModel
from tests.model.builders import TINY, K, M, R, V, as_lists, random_tokens, scrambled, suffix_mask, tiny
from tests.reference.slow_retro import SlowRetro

EXACT = {"rtol": 0.0, "atol": 1e-9}
#: Begins of the documents of two sequences of 13 tokens, and ends of chunks that fit them or do not.
STARTS = torch.tensor([[0, 0, 0, 3, 3, 3, 3, 3, 3, 9, 10, 10, 10], [0] * 6 + [6] * 7])
LAYOUTS = {
    "documents": [[2, -1, 6, 9], [3, 9, -1, -1]],
    "every_token": [[3, 4, 5, 6], [6, 7, 8, 9]],
    "every_second": [[0, 2, 4, 6], [5, 7, 9, 12]],
    "gaps": [[1, -1, -1, 12], [-1, -1, -1, -1]],
}
CONFIGS: dict[str, ModelConfig] = {
    "plain": TINY,
    "smear": tiny(smear_keys=True, qk_norm=True, num_kv_heads=1),
    "learned": tiny(positions="learned", max_positions=13, norm="layernorm", bias=True, ffn="gelu_tanh"),
    "parallel": tiny(block="parallel", gate_kind="learned"),
    "unconditioned": tiny(encoder_cross_attention_layers=()),
}


def inputs(layout: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ends = torch.tensor(LAYOUTS[layout])
    return random_tokens(2, 13, seed=1), random_tokens(2, 4, K, R, seed=2), suffix_mask(2, 4, seed=3), ends


@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_parity(name: str, layout: str, with_documents: bool) -> None:
    model = scrambled(CONFIGS[name])
    tokens, neighbors, mask, ends = inputs(layout)
    starts = STARTS if with_documents else None
    with torch.no_grad():
        fast = model(tokens, neighbors, mask, chunk_ends_BL=ends, document_starts_BN=starts).logits
        model.static_shapes = True
        static = model(tokens, neighbors, mask, chunk_ends_BL=ends, document_starts_BN=starts).logits
        slow = SlowRetro(model.config, model.state_dict())
        for b in range(2):
            expected = slow.logits(
                tokens[b].tolist(),
                as_lists(neighbors[b], mask[b]),
                chunk_ends=ends[b].tolist(),
                starts=None if starts is None else STARTS[b].tolist(),
            )
            torch.testing.assert_close(fast[b], expected, **EXACT)
            torch.testing.assert_close(static[b], expected, **EXACT)


@pytest.mark.parametrize("name", CONFIGS)
def test_grid_within_documents(name: str) -> None:
    """Without chunk ends the chunks are those of the grid, and documents cut them and what they serve."""
    model = scrambled(CONFIGS[name])
    tokens, neighbors, mask = random_tokens(2, 13, seed=1), random_tokens(2, 4, K, R, seed=2), suffix_mask(2, 4, seed=3)
    with torch.no_grad():
        fast = model(tokens, neighbors, mask, document_starts_BN=STARTS).logits
        slow = SlowRetro(model.config, model.state_dict())
        for b in range(2):
            expected = slow.logits(
                tokens[b].tolist(), as_lists(neighbors[b], mask[b]), chunk_ends=[0, 4, 8, 12], starts=STARTS[b].tolist()
            )
            torch.testing.assert_close(fast[b], expected, **EXACT)


def test_chunk_ends_of_the_grid_are_the_grid() -> None:
    model = scrambled(TINY)
    tokens, neighbors, mask = random_tokens(2, 10, seed=1), random_tokens(2, 3, K, R, seed=2), suffix_mask(2, 3, seed=3)
    with torch.no_grad():
        grid = model(tokens, neighbors, mask, first_chunk_length=2).logits
        ends = torch.tensor([[1, 5, 9]] * 2)
        torch.testing.assert_close(model(tokens, neighbors, mask, chunk_ends_BL=ends).logits, grid, **EXACT)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_document_is_as_if_alone(name: str) -> None:
    """Each document's logits equal those of the document by itself."""
    model = scrambled(CONFIGS[name])
    tokens, neighbors, mask, ends = inputs("documents")
    with torch.no_grad():
        packed = model(tokens, neighbors, mask, chunk_ends_BL=ends, document_starts_BN=STARTS).logits
        for b, begin, stop, rows in [(0, 0, 3, [0]), (0, 3, 9, [2]), (0, 9, 10, [3]), (0, 10, 13, []), (1, 6, 13, [1])]:
            own = (ends[b, rows] - begin)[None]
            alone = model(
                tokens[b : b + 1, begin:stop],
                neighbors[b : b + 1, rows] if rows else None,
                mask[b : b + 1, rows] if rows else None,
                chunk_ends_BL=own if rows else None,
            ).logits
            torch.testing.assert_close(packed[b, begin:stop], alone[0], **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_documents_do_not_see_each_other(name: str, static: bool, dtype: torch.dtype) -> None:
    """Bit for bit: tokens and neighbors of one document move no other document's logits."""
    model = scrambled(CONFIGS[name], dtype=dtype)
    model.static_shapes = static
    tokens, neighbors, _, ends = inputs("documents")
    layout = {"chunk_ends_BL": ends, "document_starts_BN": STARTS}
    with torch.no_grad():
        before = model(tokens, neighbors, **layout).logits
        for begin, stop, row in [(0, 3, 0), (3, 9, 2), (9, 10, 3)]:
            changed, other = tokens.clone(), neighbors.clone()
            changed[0, begin:stop] = (changed[0, begin:stop] + 1) % V
            other[0, row] = (other[0, row] + 1) % V
            after = model(changed, other, **layout).logits
            outside = torch.ones(13, dtype=torch.bool)
            outside[begin:stop] = False
            assert torch.equal(before[0, outside], after[0, outside])
            assert torch.equal(before[1], after[1])
            assert not torch.equal(before[0, begin:stop], after[0, begin:stop])


def test_equal_neighbors_are_encoded_once() -> None:
    """An encoder that does not see the chunk: same logits and gradients, fewer rows."""
    from retro.model.retrieval_plan import plan_retrieval

    config = tiny(encoder_cross_attention_layers=())
    neighbors, mask = random_tokens(2, 3, K, R, seed=2), suffix_mask(2, 3, seed=3)
    mask[..., 0] = True
    neighbors[1], mask[1] = neighbors[0], mask[0]
    arguments = {"length": 12, "chunk_length": M, "first_chunk_length": M}
    plan = plan_retrieval(neighbors, mask, **arguments, merge_equal=True)
    assert plan is not None and plan.tokens.shape[0] == 3 * K
    tokens, results = random_tokens(2, 12, seed=1), []
    for static in (False, True):
        model = scrambled(config)
        model.static_shapes = static
        loss = model(tokens, neighbors, mask, targets_BN=tokens).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for merged, plain in zip(*results, strict=True):
        torch.testing.assert_close(merged, plain, **EXACT)


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize(
    "parts", [("decoder",), ("cross_attention",), ("encoder",), ("decoder", "cross_attention", "encoder")]
)
def test_checkpointed_parts_change_nothing(parts: tuple[str, ...], static: bool) -> None:
    """Loss and gradients bit for bit, dropout included."""
    results = []
    for checkpointed in ((), parts):
        model = scrambled(tiny(dropout=0.2, encoder_dropout=0.2), dtype=torch.float32).train()
        model.checkpointed, model.static_shapes = frozenset(checkpointed), static
        tokens, neighbors, mask, ends = inputs("documents")
        torch.manual_seed(3)
        loss = model(tokens, neighbors, mask, targets_BN=tokens, chunk_ends_BL=ends, document_starts_BN=STARTS).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for kept, again in zip(*results, strict=True):
        assert torch.equal(kept, again)


def test_checkpointed_parts_are_computed_again() -> None:
    calls = []
    model = scrambled(TINY).train()
    model.encoder.layers[0].attention.register_forward_pre_hook(lambda *_: calls.append("encoder"))
    model.layers[0].feed_forward.register_forward_pre_hook(lambda *_: calls.append("decoder"))
    model.layers[1].cross_attention.attention.register_forward_pre_hook(lambda *_: calls.append("cross_attention"))
    tokens, neighbors = random_tokens(1, 8), random_tokens(1, 2, K, R)
    for part in ("encoder", "decoder", "cross_attention"):
        calls.clear()
        model.checkpointed = frozenset({part})
        model(tokens, neighbors, targets_BN=tokens).loss.backward()
        assert {name: calls.count(name) for name in set(calls)} == {
            name: 2 if name == part else 1 for name in ("encoder", "decoder", "cross_attention")
        }


def test_static_loss_equals_the_compact_one() -> None:
    tokens, neighbors, mask, ends = inputs("documents")
    targets, scored = random_tokens(2, 13, seed=5), torch.rand(2, 13, generator=torch.Generator().manual_seed(1)) > 0.4
    results = []
    for static in (False, True):
        model = scrambled(TINY)
        model.static_shapes = static
        garbage = targets.masked_fill(~scored, 10**6)
        out = model(tokens, neighbors, mask, targets_BN=garbage, loss_mask_BN=scored, chunk_ends_BL=ends)
        out.loss.backward()
        results.append(
            [out.loss.detach(), out.loss_sum.detach(), out.token_losses_BN, out.num_scored]
            + [p.grad for p in model.parameters()]
        )
    for compact, whole in zip(*results, strict=True):
        torch.testing.assert_close(compact, whole, **EXACT)


def test_wrong_shapes_are_refused() -> None:
    model = RetroModel(TINY)
    tokens, neighbors, _, ends = inputs("documents")
    with pytest.raises(ValueError, match="chunk_ends_BL: expected"):
        model(tokens, neighbors, chunk_ends_BL=ends[:, :3])
    with pytest.raises(ValueError, match=f"chunk_ends_BL: expected positions below {tokens.shape[1]}, found 99"):
        model(tokens, neighbors, chunk_ends_BL=torch.where(ends == ends.max(), 99, ends))
    with pytest.raises(ValueError, match="document_starts_BN: expected shape"):
        model(tokens, neighbors, document_starts_BN=STARTS[:, :5])
    with pytest.raises(ValueError, match="give it or chunk_ends_BL, not both"):
        model(tokens, neighbors, chunk_ends_BL=ends, first_chunk_length=1)
    learned = RetroModel(tiny(positions="learned", max_positions=12))
    with pytest.raises(ValueError, match="at most max_positions 12 tokens per sequence, found 13"):
        learned(tokens)


@pytest.mark.parametrize("packed", [False, True])
def test_static_shapes_read_no_value_on_the_host(packed: bool) -> None:
    """On the meta device there are no values: what would wait for an accelerator fails there."""
    with torch.device("meta"):
        model = RetroModel(tiny(smear_keys=True)).train()
        model.static_shapes = True
        tokens, neighbors = torch.zeros((2, 12), dtype=torch.int64), torch.zeros((2, 3, K, R), dtype=torch.int64)
        mask = neighbors > 0
        layout = {"document_starts_BN": tokens, "chunk_ends_BL": neighbors[..., 0, 0]} if packed else {}
        logits = model(tokens, neighbors, mask, **layout).logits
        logits.sum().backward()
    assert logits.shape == (2, 12, V)
    assert all(p.grad is not None for p in model.parameters())
