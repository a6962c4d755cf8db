"""Build frozen dataclass configurations: defaults, then a YAML file, then `key=value` overrides (the last wins).

Rules that users can rely on:

* an unknown key is an error and names the nearest known one;
* a value of a wrong type is an error and names the key's full path, the type expected and the value found;
* a field whose type is itself a configuration may be given as a string: the path of a YAML file, relative to the file
  that mentions it (or to the working directory when it is given on the command line);
* overrides are dotted (`model.num_layers=4`), their values are parsed as YAML, and `1e-3` is a number.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from retro.config.errors import ConfigError

T = TypeVar("T")

# YAML 1.1 reads "1e-3" as a string (it wants "1.0e-3"); every user means the number.
_FLOAT = re.compile(r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$")


def load_config(cls: type[T], path: str | Path | None = None, overrides: Iterable[str] = ()) -> T:
    """Return an instance of the dataclass `cls`.

    Raises ConfigError for a missing or malformed file, an unknown key, a wrong type, or a value the class refuses.
    """
    return _build(cls, load_mapping(cls, path, overrides), where="", source=_source(path))


def load_mapping(cls: type, path: str | Path | None = None, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """What file and overrides say, as a mapping for `from_dict`: without defaults, values not converted yet.

    Raises ConfigError for a missing or malformed file and for overrides of unknown keys.
    """
    base: dict[str, Any] = {}
    folder = Path.cwd()
    if path is not None:
        path = Path(path)
        base = _read_yaml_mapping(path)
        folder = path.resolve().parent
    base = _expand_includes(cls, base, folder, _source(path) if path else "defaults")
    for item in overrides:
        _apply_override(cls, base, item)
    return base


def _source(path: str | Path | None) -> str:
    return str(path) if path else "command line"


def to_dict(config: Any) -> Any:
    """Plain JSON/YAML-able form of a configuration (tuples become lists)."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    if isinstance(config, Path):
        return str(config)
    return config


def dump_yaml(config: Any) -> str:
    """The configuration as YAML text, in field order; `load_config` reads it back to an equal object."""
    data = to_dict(config)
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    # A few characters (U+0085 among them) are written as they are but read back as line breaks: then escape them all.
    return text if yaml.safe_load(text) == data else yaml.safe_dump(data, sort_keys=False, allow_unicode=False)


def from_dict(cls: type[T], data: Mapping[str, Any], source: str = "mapping") -> T:
    """Build `cls` from an already parsed mapping (a stored manifest or config.json)."""
    return _build(cls, dict(data), where="", source=source)


def _read_yaml_mapping(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(
            f"{path}: configuration file not found; give the path of a YAML file, e.g. one below configs/"
        )
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = str(error).replace("\n", " ")
        raise ConfigError(f"{path}: not valid YAML: {line}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected key: value pairs, found {type(data).__name__}")
    return data


def _expand_includes(cls: type, data: dict[str, Any], folder: Path, source: str) -> dict[str, Any]:
    """Replace every 'path of a YAML file' standing where a nested configuration is due by that file's content."""
    hints = typing.get_type_hints(cls)
    out = dict(data)
    for key, value in data.items():
        nested = _dataclass_of(hints.get(key)) if key in hints else None
        if nested is None:
            continue
        if isinstance(value, str):
            file = (folder / value).resolve()
            if not file.is_file():
                raise ConfigError(f"{source}: {key}: file {value!r} not found (looked for {file})")
            out[key] = _expand_includes(nested, _read_yaml_mapping(file), file.parent, str(file))
        elif isinstance(value, dict):
            out[key] = _expand_includes(nested, value, folder, source)
    return out


def _apply_override(cls: type, base: dict[str, Any], item: str) -> None:
    key, separator, text = item.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {item!r}: expected key=value, e.g. steps=100")
    try:
        value = yaml.safe_load(text) if text != "" else ""
    except yaml.YAMLError:
        raise ConfigError(f"override {item!r}: the value is not valid YAML") from None
    parts = key.split(".")
    current_cls: Any = cls
    node = base
    for i, part in enumerate(parts):
        where = ".".join(parts[: i + 1])
        if not (isinstance(current_cls, type) and dataclasses.is_dataclass(current_cls)):
            raise ConfigError(f"override {item!r}: {'.'.join(parts[:i])} has no fields")
        hints = typing.get_type_hints(current_cls)
        _check_known(current_cls, part, hints, where, "override")
        last = i == len(parts) - 1
        nested = _dataclass_of(hints[part])
        if last:
            if nested is not None and isinstance(value, str):
                file = Path(value)
                if not file.is_file():
                    raise ConfigError(f"override {item!r}: file {value!r} not found")
                value = _expand_includes(nested, _read_yaml_mapping(file), file.resolve().parent, value)
            node[part] = value
        else:
            if nested is None:
                if typing.get_origin(hints[part]) is dict or hints[part] is dict:
                    mapping = node.setdefault(part, {})
                    mapping[".".join(parts[i + 1 :])] = value
                    return
                raise ConfigError(f"override {item!r}: {where} has no fields")
            child = node.get(part)
            if not isinstance(child, dict):
                child = {}
                node[part] = child
            node = child
            current_cls = nested


def _dataclass_of(hint: Any) -> type | None:
    """The dataclass in `X`, `X | None`, else None."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        found = [_dataclass_of(a) for a in typing.get_args(hint)]
        classes = [c for c in found if c is not None]
        if len(classes) == 1:
            return classes[0]
    return None


def _check_known(cls: type, key: str, hints: Mapping[str, Any], where: str, source: str) -> None:
    if key in hints:
        return
    # Keys of earlier versions, in the undeclared class attribute RETIRED: key -> what to do instead.
    retired: Mapping[str, str] = getattr(cls, "RETIRED", {})
    if key in retired:
        raise ConfigError(f"{source}: {where} is no longer read: {retired[key]}")
    near = difflib.get_close_matches(key, hints, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(hints))}"
    raise ConfigError(f"{source}: unknown key {where!r}{hint}")


def _build(cls: type[T], data: Any, where: str, source: str) -> T:
    if not isinstance(data, Mapping):
        raise ConfigError(f"{source}: {where or 'top level'}: expected key: value pairs, found {data!r}")
    hints = typing.get_type_hints(cls)
    kwargs: dict[str, Any] = {}
    for key, value in data.items():
        full = f"{where}.{key}" if where else str(key)
        _check_known(cls, str(key), hints, full, source)
        kwargs[str(key)] = _convert(hints[key], value, full, source)
    missing = [
        f.name
        for f in dataclasses.fields(cls)  # type: ignore[arg-type]
        if f.name not in kwargs and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        full = f"{where}.{missing[0]}" if where else missing[0]
        raise ConfigError(f"{source}: {full!r} is required; add it to the file or give {full}=VALUE")
    try:
        return cls(**kwargs)
    except ConfigError as error:
        raise ConfigError(f"{source}: {where + ': ' if where else ''}{error}") from None


def _convert(hint: Any, value: Any, where: str, source: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        problem: ConfigError | None = None
        for option in options:
            try:
                return _convert(option, value, where, source)
            except ConfigError as error:
                problem = error
        assert problem is not None
        raise problem
    if origin is typing.Literal:
        if value in args and not (isinstance(value, bool) and not any(isinstance(a, bool) for a in args)):
            return value
        # YAML reads bare on/off/yes/no as booleans; choices such as "on" and "off" are strings to the user.
        if isinstance(value, bool):
            for text in ("on", "yes", "true") if value else ("off", "no", "false"):
                if text in args:
                    return text
        raise ConfigError(f"{source}: {where}: expected one of {', '.join(map(repr, args))}, found {value!r}")
    if dataclasses.is_dataclass(hint):
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        return _build(hint, value, where, source)  # type: ignore[arg-type]
    if origin in (tuple, list):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{source}: {where}: expected a list, found {value!r}")
        if origin is list or (len(args) == 2 and args[1] is Ellipsis):
            converted = [_convert(args[0], v, f"{where}[{i}]", source) for i, v in enumerate(value)]
            return converted if origin is list else tuple(converted)
        if len(value) != len(args):
            raise ConfigError(f"{source}: {where}: expected {len(args)} values, found {len(value)}")
        return tuple(_convert(a, v, f"{where}[{i}]", source) for i, (a, v) in enumerate(zip(args, value, strict=True)))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{source}: {where}: expected key: value pairs, found {value!r}")
        return {
            _convert(args[0], k, where, source): _convert(args[1], v, f"{where}.{k}", source) for k, v in value.items()
        }
    return _scalar(hint, value, where, source)


def _scalar(hint: Any, value: Any, where: str, source: str) -> Any:
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and isinstance(value, (int, str, float)) and not isinstance(value, bool):
        if isinstance(value, int):
            return value
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if (
            isinstance(value, str)
            and _FLOAT.match(value.replace("_", ""))
            and float(value.replace("_", "")).is_integer()
        ):
            return int(float(value.replace("_", "")))
    if hint is float and not isinstance(value, bool):
        # A whole number beyond the largest float is none.
        if isinstance(value, float) or (isinstance(value, int) and abs(value) <= sys.float_info.max):
            return float(value)
        if isinstance(value, str) and _FLOAT.match(value):
            return float(value)
    if hint is str:
        if isinstance(value, str):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return str(value)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    name = getattr(hint, "__name__", str(hint))
    raise ConfigError(f"{source}: {where}: expected {name}, found {value!r}")
