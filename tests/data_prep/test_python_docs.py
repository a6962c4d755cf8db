"""The python_docs reader, on packages made in code and on the standard library."""

import ast
import textwrap

import pytest

from data_prep.readers.base import BROKEN_SOURCE, Reject
from data_prep.readers.python_docs.extract import parse_module
from data_prep.readers.python_docs.reader import PythonDocsReader
from data_prep.readers.python_docs.signature import arguments, class_arguments, function_arguments
from data_prep.readers.python_docs.strings import StaticStrings, UnknownValueError
from retro.config.errors import ConfigError
from retro.config.prep import PythonDocsConfig
from tests.data_prep.corpora import ids, read_all

FILES = {
    "__init__.py": '''
        """A package with everything."""
        from demopkg._core.sums import total as total, _hidden
        from demopkg._core import *
        from .shapes.flat import Square
        import os.path
    ''',
    "_core/__init__.py": """
        from .stars import *
    """,
    "_core/sums.py": '''
        """Inner module, nobody's business."""
        raise RuntimeError("a documented package must never be imported")
        def total(values, *, start=0) -> int:
            """Add up the values.

               Indented, with trailing blanks.   \t
            """
        def _hidden():
            """Private although it is imported by name."""
        def internal():
            """Public name in a private module that exports it nowhere."""
    ''',
    "_core/stars.py": '''
        __all__ = ["starred", "gamma"]
        def starred(a, b=1):
            """Reached through two star imports."""
        def unlisted():
            """Not in the list, so a star import does not bring it."""
        class gamma_gen:
            """A distribution whose %(kind)s is known.

            %(before_notes)s
            """
        gamma = gamma_gen(name="gamma")
    ''',
    "shapes/__init__.py": "",
    "aside/__init__.py": "from demopkg.stubbed import known  # an incidental import renames nothing\n",
    "shapes/flat.py": '''
        """Flat shapes, all of them."""
        class Shape:
            """Any shape at all."""
            def __init__(self, name="shape"): ...
            @property
            def area(self) -> float:
                """The area of the shape."""
            @area.setter
            def area(self, value):
                """Set."""
            @staticmethod
            def unit(size, /, *args, **kwargs):
                """A shape of unit size."""
            def _private(self):
                """A private method."""
            class Inner:
                """A class inside."""
        class Square(Shape):
            """Four equal sides."""
            def scale(self, factor: float = 2.0) -> "Square":
                """Scale it by a factor."""
        if True:
            def either():
                """Short branch."""
        else:
            def either():
                """The branch with the longer text."""
        def outer():
            """The outer function."""
            def local():
                """Local to a function."""
    ''',
    "tests/test_x.py": 'def f():\n    """In a test package."""\n',
    "_vendor/copy.py": 'def g():\n    """Somebody else\'s code."""\n',
    "test_top.py": 'def h():\n    """In a test module."""\n',
    "docs.py": '''
        from demopkg.common import shared
        kwargs = merge_dicts(
            parse_kwargs("\\n    size (int): the size.\\n    dim (int): the dimension,\\n        of the input.\\n"),
            {"note": "A note."},
        )
        add_docstr(demopkg.fast, r"""
        fast(x, size) -> Tensor

        Computed in C. Arguments: {note} {size} {unknown} {common}

        {dim}
        """.format(**kwargs, common=shared))
        slow = _add_docstr(_C.slow_impl, "Computed in C, " + "slowly.")
        def add_docstr_all(method, docstr):
            add_docstr(getattr(demopkg.Shape3, method), docstr)
        add_docstr_all("rotate", "Rotate the thing.")
        add_newdoc("demopkg._core.multi", "array", ("T", """Transposed view."""))
        add_newdoc("demopkg._core", "dtype", [("name", "Its name."), ("kind", "Its kind.")])
        add_newdoc("hypot2", f"Root of {shared} squares.")
        add_docstr(demopkg.unknown, make_it_up())
    ''',
    "common.py": 'shared = "sum of"\n',
    "stubbed.py": 'def known():\n    """Text of the source."""\n',
    "stubbed.pyi": '''
        def known():
            """A far longer text in the stub, which does not count."""
        def only_here(x: int) -> int:
            """Documented in the stub only."""
    ''',
    "broken.py": "def f(:\n",
    "null.py": "x = 1\x00\n",
    "latin.py": b'# coding: latin-1\n"""Stra\xdfe in latin-1."""\n',
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    for name, content in FILES.items():
        path = tmp_path / "demopkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else textwrap.dedent(content).lstrip("\n").encode())
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def reader(**options):
    options = {"packages": ("demopkg",), "standard_library": False, "min_characters": 1, **options}
    return PythonDocsReader(PythonDocsConfig(**options))


def test_documents_of_a_package(package):
    found = ids(reader())
    assert found["demopkg"] == "module demopkg\n\nA package with everything."
    assert found["demopkg.total"] == (
        "demopkg.total(values, *, start=0) -> int\n\nAdd up the values.\n\nIndented, with trailing blanks."
    )
    assert found["demopkg.shapes.flat.Shape"] == "class demopkg.shapes.flat.Shape(name='shape')\n\nAny shape at all."
    assert found["demopkg.shapes.flat.Shape.area"].startswith("demopkg.shapes.flat.Shape.area -> float\n\nThe area")
    assert found["demopkg.shapes.flat.Shape.unit"].startswith(
        "demopkg.shapes.flat.Shape.unit(size, /, *args, **kwargs)"
    )
    assert found["demopkg.shapes.flat.Shape.Inner"].endswith("A class inside.")
    assert found["demopkg.shapes.flat.either"].endswith("The branch with the longer text.")
    assert found["demopkg.latin"].endswith("Straße in latin-1.")


def test_public_names_follow_the_imports_of_containing_packages(package):
    found = ids(reader())
    assert found["demopkg.starred"].startswith("demopkg.starred(a, b=1)\n\n")
    assert found["demopkg.Square"].startswith("class demopkg.Square(Shape)\n\n")
    assert found["demopkg.Square.scale"].startswith("demopkg.Square.scale(factor=2.0) -> 'Square'\n\n")
    # An instance stands for its class, and lines that are filled in at run time are gone.
    assert found["demopkg.gamma"] == "class demopkg.gamma\n\nA distribution whose %(kind)s is known."


def test_what_only_private_modules_hold_is_left_out_unless_asked_for(package):
    public, everything = set(ids(reader())), set(ids(reader(private=True)))
    assert public < everything
    hidden = {
        "demopkg._core.sums",
        "demopkg._core.sums.internal",
        "demopkg._core.sums._hidden",
        "demopkg._core.stars.unlisted",
        "demopkg.shapes.flat.Shape._private",
    }
    assert everything - public == hidden
    never = {"demopkg.tests.test_x.f", "demopkg._vendor.copy.g", "demopkg.test_top.h"}
    assert not never & everything
    assert not any(name.endswith("local") for name in everything)


def test_docstrings_attached_to_extension_modules(package):
    found = ids(reader())
    # The docstring brings its own header: only the name is completed. Unknown values leave their place empty.
    assert found["demopkg.fast"] == (
        "demopkg.fast(x, size) -> Tensor\n\nComputed in C. Arguments: A note. size (int): the size.  sum of\n\n"
        "dim (int): the dimension,\n        of the input."
    )
    assert found["demopkg.docs.slow"] == "demopkg.docs.slow\n\nComputed in C, slowly."
    assert found["demopkg.Shape3.rotate"].endswith("Rotate the thing.")
    assert found["demopkg.array.T"].endswith("Transposed view.")
    assert found["demopkg.dtype.name"].endswith("Its name.") and found["demopkg.dtype.kind"].endswith("Its kind.")
    assert found["demopkg.docs.hypot2"].endswith("Root of sum of squares.")
    assert "demopkg.unknown" not in found


def test_stubs_fill_in_what_sources_lack(package):
    found = ids(reader())
    assert found["demopkg.stubbed.known"].endswith("Text of the source.")
    assert found["demopkg.stubbed.only_here"] == "demopkg.stubbed.only_here(x) -> int\n\nDocumented in the stub only."


def test_broken_sources_are_rejected(package):
    _, rejects = read_all(reader())
    assert rejects == [Reject("demopkg/broken.py", 1, BROKEN_SOURCE), Reject("demopkg/null.py", 0, BROKEN_SOURCE)]


def test_short_docstrings_are_not_documents(package):
    lengths = {len(text.split("\n\n", 1)[1]) for text in ids(reader(min_characters=25)).values()}
    assert min(lengths) >= 25
    assert len(ids(reader(min_characters=25))) < len(ids(reader()))


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (1, {"demopkg"}),
        (
            {"demopkg": 2},
            {"demopkg", "demopkg._core", "demopkg.shapes", "demopkg.docs", "demopkg.stubbed", "demopkg.latin"},
        ),
        ({"other": 2}, {"demopkg"}),
    ],
)
def test_groups_are_of_the_defining_module(package, depth, expected):
    records, _ = read_all(reader(group_depth=depth))
    assert {r.fields["group"] for r in records} == expected
    if depth == {"demopkg": 2}:
        groups = {r.fields["id"]: r.fields["group"] for r in records}
        assert groups["demopkg.total"] == "demopkg._core"
        assert groups["demopkg.Square.scale"] == "demopkg.shapes"
        assert groups["demopkg.fast"] == "demopkg"


def test_identity_follows_contents(package):
    before = reader().identity()
    assert reader().identity() == before and before["versions"] == {"demopkg": "unknown"}
    (package / "demopkg" / "common.py").write_text('shared = "SUM of"\n')
    assert reader().identity() != before


def test_missing_packages_are_named(package):
    with pytest.raises(ConfigError, match="'no_such_package' is not installed"):
        reader(packages=("demopkg", "no_such_package")).pieces()
    (package / "empty_package").mkdir()
    with pytest.raises(ConfigError, match="'empty_package' has no Python source"):
        reader(packages=("empty_package",)).pieces()
    with pytest.raises(ConfigError, match=r"top-level import names such as numpy, found 'torch\.nn'"):
        PythonDocsConfig(packages=("torch.nn",))


def test_standard_library():
    library = PythonDocsReader(PythonDocsConfig())
    pieces = library.pieces()
    names = [item["package"] for piece in pieces for item in piece["items"]]
    assert {"json", "asyncio", "textwrap", "pydoc_data"} <= set(names)
    assert not {"test", "idlelib", "lib2to3", "site-packages"} & set(names)
    items = [item for piece in pieces for item in piece["items"]]
    chosen = {"items": [item for item in items if item["package"] in ("json", "textwrap", "pydoc_data")]}
    records = {r.fields["id"]: r.fields for r in library.read(chosen)}
    assert records["json.dumps"]["text"].startswith("json.dumps(obj, *, skipkeys=False, ensure_ascii=True,")
    assert records["textwrap.dedent"]["group"] == "textwrap"
    assert len(records["pydoc_data.topics.class"]["text"]) > 1000


def test_a_worker_finds_the_files_of_its_piece_alone(package):
    import pickle

    whole = reader()
    piece = whole.pieces()[0]
    travelled = pickle.loads(pickle.dumps(whole))
    assert "packages" not in travelled.__dict__
    assert list(travelled.read(piece)) == list(whole.read(piece))


# --- headers and static strings


def function(source: str) -> ast.FunctionDef:
    node = ast.parse(source).body[0]
    assert isinstance(node, ast.FunctionDef)
    return node


@pytest.mark.parametrize(
    ("source", "bound", "expected"),
    [
        ("def f(): ...", False, ""),
        ("def f(self): ...", True, ""),
        ("def f(self, /, a): ...", True, "a"),
        ("def f(a, b=2, /, c='x', *, d, e=None, **k): ...", False, "a, b=2, /, c='x', *, d, e=None, **k"),
        ("def f(a: int, *args: str): ...", False, "a, *args"),
        ("def f(a=" + repr("y" * 50) + "): ...", False, "a=..."),
    ],
)
def test_arguments(source, bound, expected):
    assert arguments(function(source).args, bound) == expected


def test_long_argument_lists_are_cut():
    text = arguments(function("def f(" + ", ".join(f"argument_{i}=None" for i in range(100)) + "): ...").args, False)
    assert len(text) < 340 and text.startswith("argument_0=None, ") and text.endswith("=None, ...")


def test_headers():
    assert function_arguments(function("def f(cls, a) -> dict[str, int]: ..."), method=True) == "(a) -> dict[str, int]"
    assert function_arguments(function("@staticmethod\ndef f(a): ..."), method=True) == "(a)"
    node = ast.parse("class C(A, B): ...").body[0]
    assert isinstance(node, ast.ClassDef) and class_arguments(node) == "(A, B)"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("'a' + NAME", "aname"),
        ("'%s!' % NAME", "name!"),
        ("'{x}-{missing}{{}}'.format(x=NAME)", "name-{}"),
        ("'{0}{y.attribute}'.format(1)", ""),
        ("textwrap.dedent('\\n  a\\n  b')", "a\nb"),
        ("f'{NAME}:{other()}'", "name:"),
        ("' x '.strip().replace('x', NAME)", "name"),
        ("D['k']", None),
        ("TWICE", None),
        ("LOOP", None),
        ("open('/etc/passwd').read()", None),
        ("'%d' % NAME", None),
        ("3", None),
    ],
)
def test_static_strings(expression, expected):
    tree = parse_module(
        f"NAME = 'name'\nTWICE = 'a'\nTWICE = 'b'\nLOOP = LOOP\nD = {{'k': 'v'}}\n{expression}".encode()
    )
    node = tree.body[-1]
    assert isinstance(node, ast.Expr)
    if expected is None:
        with pytest.raises(UnknownValueError):
            StaticStrings(tree).text(node.value)
    else:
        assert StaticStrings(tree).text(node.value) == expected
