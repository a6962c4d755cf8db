"""Default values and return types that an API document states: in its header line, and in numpy-style, Google-style
and Sphinx-style sections. Everything returned stands verbatim in the text.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class DocumentedValue:
    """kind: "default" or "return_type"; parameter: "" for return types; answers: one, or two where header and prose
    differ; evidence: the line that states the first answer, without the white space around it."""

    kind: str
    parameter: str
    answers: tuple[str, ...]
    evidence: str


_Found = tuple[str, str]  # (value, line)
_HEADER = re.compile(r"^(?:class )?[A-Za-z_][\w.]*\(")
_NUMPY_HEADING = re.compile(r"^(?P<indent> *)(?P<name>[A-Z][A-Za-z ]+)\n(?P=indent)-{3,} *$", re.M)
_GOOGLE_HEADING = re.compile(r"^(?P<indent> *)(?P<name>[A-Z][A-Za-z ]+):{1,2} *$", re.M)
_NUMPY_PARAMETERS = ("Parameters", "Other Parameters", "Keyword Arguments", "Attributes")
_GOOGLE_PARAMETERS = ("Args", "Arguments", "Parameters", "Keyword args", "Keyword Args", "Keyword Arguments", "Params")
_RETURNS = ("Returns", "Return")
_NUMPY_ENTRY = re.compile(r"^(?P<names>\*{0,2}`{0,2}\w+`{0,2}(?: *, *\*{0,2}\w+)*) *: *(?P<rest>.*)$")
_GOOGLE_ENTRY = re.compile(r"^(?P<names>\*{0,2}`{0,2}\w+`{0,2}) *(?P<rest>(?:\(.*?\))? *:.*|\([^)]*)$")
_SPHINX_PARAMETER = re.compile(
    r"^ *:(?:param|type|keyword|kwarg|arg)(?: [^:\n]*?)? \*{0,2}(?P<name>\w+): *(?P<rest>.*)$"
)
_SPHINX_RETURN = re.compile(r"^ *:rtype: *(?P<rest>.*)$", re.M)
# Bare words in prose are values only if they are constants; in quotes or back-ticks anything short is.
_VALUE = (
    r"(?P<value>``[^`\n]+``|`[^`\n]+`|'[^'\n]*'|\"[^\"\n]*\"|[-+]?(?:\d[\d_]*(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?(?!\w|\s*[*^/%])"
    r"|(?:True|False|None)\b|\(\)|\[\]|\{\})"
)
_DEFAULT = re.compile(rf"\b[Dd]efaults?(?:\s+value)?(?:\s*[:=]\s*|\s+(?:is|to|of)(?:\s*:)?\s+|\s+){_VALUE}")
# "(default: 0)", "Default: 0." say it; "defaults to None if x is given" says it only sometimes.
_CONDITION = re.compile(r"^`*[ ,]*\s*(?:if|when|unless|for|on|in|except|or|and|which|otherwise)\b")
_TYPE = re.compile(r"^[A-Za-z_][\w.]*(?:\[[\w.,|\[\]: ]*\])?(?: (?:or|of|\|) [A-Za-z_][\w.]*(?:\[[\w.,|\[\] ]*\])?)*$")
_ROLE = re.compile(r":(?:class|obj|py:class|mod|ref|func|meth):`~?\.?([^`]+)`")
_NOT_VALUES = re.compile(r"no_default|NoValue|<|\.\.\.|^_|sentinel|object\(\)|missing", re.IGNORECASE)


def documented_values(text: str) -> list[DocumentedValue]:
    """What the text states, defaults in the order of the parameters, then the return type; one entry each."""
    header = _header_line(text)
    signature, returned = parse_header(header) if header else ({}, "")
    parameters: dict[str, list[_Found]] = {name: [(value, header)] for name, value in signature.items()}
    for name, lines in _parameter_entries(text):
        value = _stated_default(lines)
        if value is not None:
            parameters.setdefault(name, []).append(value)
    values = [_documented("default", name, found) for name, found in parameters.items()]
    returns: list[_Found] = [(returned, header)] if returned else []
    returns += _stated_returns(text)
    if returns:
        values.append(_documented("return_type", "", returns))
    return [value for value in values if value is not None]


def parse_header(header: str) -> tuple[dict[str, str], str]:
    """({parameter: default}, return type or "") of `name(a, b=1, *, c=None) -> int`.

    Headers need not be valid Python ("..." ends a long one); an unbalanced one gives nothing.
    """
    start = header.index("(")
    end = _closing(header, start)
    if end is None:
        return {}, ""
    defaults = {}
    for item in _split_arguments(header[start + 1 : end]):
        name, sign, value = item.partition("=")
        name = name.split(":")[0].strip()
        if sign and name.isidentifier() and _is_value(value.strip()):
            defaults[name] = value.strip()
    arrow, _, returned = header[end + 1 :].strip().partition(" ")
    returned = returned.strip() if arrow == "->" else ""
    return defaults, returned if _is_type(returned) else ""


def _documented(kind: str, parameter: str, found: list[_Found]) -> DocumentedValue | None:
    answers = tuple(dict.fromkeys(value for value, _ in found))
    evidence = found[0][1].strip()
    return DocumentedValue(kind, parameter, answers, evidence) if answers[0] in evidence else None


def _header_line(text: str) -> str:
    first = text.split("\n", 1)[0]
    return first if _HEADER.match(first) else ""


def _closing(text: str, start: int) -> int | None:
    """Index of the bracket that closes the one at `start`; quotes are respected."""
    depth, quote = 0, ""
    for i in range(start, len(text)):
        character = text[i]
        if quote:
            quote = "" if character == quote and text[i - 1] != "\\" else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth == 0:
                return i
    return None


def _split_arguments(text: str) -> Iterator[str]:
    """Parts between the commas that are in no bracket and no quotes."""
    start = 0
    i = 0
    while i < len(text):
        character = text[i]
        if character in "([{":
            end = _closing(text, i)
            if end is None:
                return
            i = end
        elif character in "'\"":
            end = text.find(character, i + 1)
            if end < 0:
                return
            i = end
        elif character == ",":
            yield text[start:i].strip()
            start = i + 1
        i += 1
    yield text[start:].strip()


def _parameter_entries(text: str) -> Iterator[tuple[str, list[str]]]:
    """(parameter, the lines about it) over all sections and styles."""
    for lines in _sections(text, _NUMPY_HEADING, _NUMPY_PARAMETERS):
        yield from _entries(lines, _NUMPY_ENTRY)
    for lines in _sections(text, _GOOGLE_HEADING, _GOOGLE_PARAMETERS):
        yield from _entries(lines, _GOOGLE_ENTRY)
    lines = text.split("\n")
    for number, line in enumerate(lines):
        match = _SPHINX_PARAMETER.match(line)
        if match:
            rest = _more_indented(lines[number + 1 :], len(line) - len(line.lstrip()))
            yield match["name"], [line, *rest]


def _sections(text: str, heading: re.Pattern[str], names: tuple[str, ...]) -> Iterator[list[str]]:
    """Lines of the sections with these names: a numpy section ends at the next heading, a Google section where the
    indentation falls back to that of its heading."""
    matches = list(heading.finditer(text))
    for match in matches:
        if match["name"].strip() not in names:
            continue
        rest = text[match.end() :].lstrip("\n").split("\n")
        if heading is _GOOGLE_HEADING:
            yield list(_more_indented(rest, len(match["indent"])))
            continue
        following = heading.search(text, match.end())
        stop = following.start() if following else len(text)
        indent = len(match["indent"])
        yield [line[indent:] for line in text[match.end() : stop].strip("\n").split("\n")]


def _more_indented(lines: list[str], indent: int) -> list[str]:
    """The leading lines that are empty or indented by more than `indent`."""
    kept = []
    for line in lines:
        if line.strip() and len(line) - len(line.lstrip()) <= indent:
            break
        kept.append(line)
    return kept


def _entries(lines: list[str], entry: re.Pattern[str]) -> Iterator[tuple[str, list[str]]]:
    """Entries stand at the indentation of the section's first line; what is indented more belongs to them."""
    lines = [line for line in lines if line.strip()]
    if not lines:
        return
    base = len(lines[0]) - len(lines[0].lstrip())
    current: tuple[str, list[str]] | None = None
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if indent < base:
            break
        if indent == base:
            if current is not None:
                yield from _named(current)
            match = entry.match(line.strip())
            current = (match["names"], [line]) if match else None
        elif current is not None:
            current[1].append(line)
    if current is not None:
        yield from _named(current)


def _named(entry: tuple[str, list[str]]) -> Iterator[tuple[str, list[str]]]:
    for name in entry[0].split(","):
        yield name.strip(" *`"), entry[1]


def _stated_default(lines: list[str]) -> _Found | None:
    """The default in the lines of one parameter; the first statement without a condition counts."""
    for number, line in enumerate(lines):
        # "Defaults to" may end a line: look on into the next, but the value must stand in one line.
        text = line if number + 1 == len(lines) else line + "\n" + lines[number + 1].strip()
        match = _DEFAULT.search(text)
        if match is None or (match.start() > len(line)):
            continue
        if _CONDITION.match(text[match.end() :]):
            continue
        value = match["value"].strip("`").strip()
        if match["value"][-1:] == "." and value[:-1].lstrip("+-").isdigit():
            value = value[:-1]  # the full stop of a sentence, not 0. for 0.0
        if not value or not _is_value(value):
            continue
        where = line if match.start("value") < len(line) else lines[number + 1]
        return value, where
    return None


def _stated_returns(text: str) -> Iterator[_Found]:
    for lines in _sections(text, _NUMPY_HEADING, _RETURNS):
        entries = [line for line in lines if line.strip() and not line.startswith(" ")]
        if len(entries) == 1:
            _, colon, after = entries[0].partition(" : ")
            yield from _type_in(after if colon else entries[0], entries[0])
    for lines in _sections(text, _GOOGLE_HEADING, _RETURNS):
        first = next((line for line in lines if line.strip()), "")
        name, colon, _ = first.strip().partition(": ")
        if colon:
            yield from _type_in(name, first)
    for match in _SPHINX_RETURN.finditer(text):
        yield from _type_in(match["rest"], match[0])


def _type_in(text: str, line: str) -> Iterator[_Found]:
    role = _ROLE.search(text)
    text = role[1] if role and role[0] == text.strip().rstrip(".") else text.replace("`", "")
    text = text.strip().rstrip(".,:").removesuffix(", optional")
    if _is_type(text) and text in line:
        yield text, line


def _is_type(text: str) -> bool:
    """A type or a few of them, not a sentence."""
    return bool(_TYPE.match(text)) and (" " not in text or len(text.split()) <= 7)


def _is_value(text: str) -> bool:
    """A Python expression that says something: constants, names, short calls; no sentinels."""
    if not text or _NOT_VALUES.search(text):
        return False
    try:
        ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return False
    return True
