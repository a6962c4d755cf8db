from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from retro.config.errors import ConfigError
from retro.config.loader import dump_yaml, from_dict, load_config, to_dict


@dataclass(frozen=True)
class Inner:
    width: int = 4
    rate: float = 0.1
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"width: expected 1 or more, found {self.width}")


@dataclass(frozen=True)
class Outer:
    name: str
    mode: Literal["on", "off"] = "on"
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    maybe: int | None = None
    depth: int | dict[str, int] = 1


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_precedence_defaults_file_overrides(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "name: x\ninner: {width: 8, rate: 1e-3}\n")
    config = load_config(Outer, file, ["inner.width=16", "maybe=3"])
    assert config == Outer("x", inner=Inner(width=16, rate=1e-3), maybe=3)


def test_override_of_none_and_of_lists(tmp_path: Path) -> None:
    config = load_config(Outer, None, ["name=x", "maybe=null", "inner.layers=[2, 5]"])
    assert config.maybe is None and config.inner.layers == (2, 5)


def test_yaml_booleans_are_the_words_the_choices_mean(tmp_path: Path) -> None:
    assert load_config(Outer, write(tmp_path / "a.yaml", "name: x\nmode: off\n")).mode == "off"


def test_a_nested_configuration_may_be_a_file_relative_to_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    write(tmp_path / "model" / "m.yaml", "width: 32\n")
    file = write(tmp_path / "a.yaml", "name: x\ninner: model/m.yaml\n")
    assert load_config(Outer, file, ["inner.rate=2"]).inner == Inner(width=32, rate=2.0)


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("name: x\ninner: {widht: 8}\n", [], "unknown key 'inner.widht'; did you mean 'width'?"),
        ("name: x\n", ["innr.width=8"], "unknown key 'innr'; did you mean 'inner'?"),
        ("name: x\ninner: {width: [1]}\n", [], "inner.width: expected int, found [1]"),
        ("name: x\ninner: {width: 1.5}\n", [], "inner.width: expected int, found 1.5"),
        ("name: x\nflag: 1\n", [], "flag: expected bool, found 1"),
        ("name: x\nmode: maybe\n", [], "mode: expected one of 'on', 'off', found 'maybe'"),
        ("flag: true\n", [], "'name' is required"),
        ("name: x\ninner: {width: 0}\n", [], "inner: width: expected 1 or more, found 0"),
        ("name: x\ninner: nowhere.yaml\n", [], "file 'nowhere.yaml' not found"),
        ("name: x\n", ["flag"], "expected key=value"),
        ("name: x\n", ["name.first=1"], "has no fields"),
        ("- 1\n", [], "expected key: value pairs"),
        ("name: [\n", [], "not valid YAML"),
    ],
)
def test_mistakes_are_one_line_with_the_place(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    file = write(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, file, overrides)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not found"):
        load_config(Outer, tmp_path / "none.yaml")


@given(
    st.builds(
        Outer,
        name=st.text(min_size=1),
        mode=st.sampled_from(["on", "off"]),
        flag=st.booleans(),
        inner=st.builds(
            Inner,
            width=st.integers(1, 10**9),
            rate=st.floats(allow_nan=False, allow_infinity=False),
            layers=st.lists(st.integers(-9, 9)).map(tuple),
        ),
        maybe=st.none() | st.integers(-5, 5),
        depth=st.integers(1, 4) | st.dictionaries(st.text(min_size=1), st.integers(1, 5), max_size=3),
    )
)
def test_round_trip_through_yaml_and_dict(config: Outer) -> None:
    assert from_dict(Outer, to_dict(config)) == config
    assert from_dict(Outer, yaml.safe_load(dump_yaml(config))) == config


def test_text_that_yaml_would_take_for_a_line_break_survives() -> None:
    config = Outer("a\x85b", depth={"\x85": 1, "\u00e4": 2})
    assert from_dict(Outer, yaml.safe_load(dump_yaml(config))) == config
    assert "\u00e4" in dump_yaml(Outer("\u00e4"))  # other text stays readable


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner().width = 2  # type: ignore[misc]
