"""Configuration of the retrieval stages."""

import pytest

from retro.config.errors import ConfigError
from retro.config.loader import from_dict
from retro.config.prep_embed import EmbedConfig, TransformerConfig
from retro.config.prep_index import IndexConfig
from retro.config.prep_neighbors import NeighborsConfig
from retro.config.sections import result_fields


def test_fields_of_speed_only_and_unused_sections_are_no_part_of_a_result() -> None:
    slow = EmbedConfig(kind="transformer", transformer=TransformerConfig(model="m", device="cpu"))
    fast = EmbedConfig(kind="transformer", transformer=TransformerConfig(model="m", device="cuda"))
    assert result_fields(slow) == result_fields(fast)
    assert "lexical" not in result_fields(slow) and "model" in result_fields(slow)["transformer"]
    assert "vectors" not in result_fields(IndexConfig()) and "bm25" not in result_fields(IndexConfig(kind="vectors"))


@pytest.mark.parametrize(
    ("cls", "data", "message"),
    [
        (EmbedConfig, {"kind": "transformer"}, "transformer.model is required"),
        (EmbedConfig, {"transformer": {"model": "m"}}, "section transformer is filled in, but kind is 'lexical'"),
        (EmbedConfig, {"lexical": {"signs": 300}}, "signs: expected 1 to the dimension 256, found 300"),
        (IndexConfig, {"vectors": {"factory": "Flat"}}, "section vectors is filled in, but kind is 'bm25'"),
        (IndexConfig, {"kind": "vectors", "vectors": {"probes": 4}}, "probes is not read by factory: exact"),
        (IndexConfig, {"bm25": {"b": 1.5}}, "b: expected 0 to 1, found 1.5"),
        (IndexConfig, {"bm25": {"max_document_frequency": 0}}, "max_document_frequency: expected above 0"),
        (NeighborsConfig, {"candidates": 10}, "candidates: expected at least keep = 20, found 10"),
        (NeighborsConfig, {"max_overlap_tokens": -1}, "max_overlap_tokens: expected 0 or more"),
        (NeighborsConfig, {"shard_chunks": 0}, "shard_chunks: expected 1 or more"),
    ],
)
def test_bad_values_are_one_clear_line(cls: type, data: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(cls, data)
    assert message in str(caught.value) and "\n" not in str(caught.value)
