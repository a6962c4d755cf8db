"""Configuration of a whole preparation."""

import pytest

from retro.config.errors import ConfigError
from retro.config.preparation import PrepConfig


@pytest.mark.parametrize("held_out", ["valid", "test"])
def test_held_out_text_cannot_be_in_the_database(held_out: str) -> None:
    """It would be read as neighbors in training, and retrieved for the other held-out documents."""
    with pytest.raises(ConfigError, match=f"database_splits: {held_out} is held out"):
        PrepConfig(root="x", database_splits=("train", held_out))
    assert PrepConfig(root="x", database_splits=("train", "database_only")).database_splits


@pytest.mark.parametrize("name", ["database_splits", "query_splits"])
def test_a_split_listed_twice_or_unknown_is_refused(name: str) -> None:
    for splits, message in (((), "found none"), (("train", "train"), "listed twice"), (("trian",), "'trian'")):
        with pytest.raises(ConfigError, match=f"{name}: .*{message}"):
            PrepConfig(root="x", **{name: splits})
