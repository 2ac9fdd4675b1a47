"""Rows: each one that is cited is defined in docs/behaviour.md, once, and each is cited by a test.

What counts as a citation, if X1 is a row:

* "row X1", "rows X1, X2 and X3", "rows X1 to X3" (with all in between);
* "(X1)", "[X1]", "(X1, X2 ...)";
* a comment or docstring that begins with rows: "# X1: why", "# --- X1 to X3 ---", "# X1";
* the name of a test: test_x1_x2_what, test_x1_to_x3_what, in C++ TEST(x1_x2_what).

A row is a letter from A to N and a number of one or two digits.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
BEHAVIOUR = ROOT / "docs/behaviour.md"
FOLDERS = ("csrc", "pgalloc", "tests", "stress", "benchmarks", "docs")
SUFFIXES = {".py", ".pyi", ".cc", ".h", ".md"}
SOURCES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(
        path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in SUFFIXES and path != Path(__file__)  # with rows that are made up
    ),
]
TESTS = sorted([*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "tests/native").glob("*_test.cc")])
PACKAGE = sorted((ROOT / "pgalloc").rglob("*.py"))

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

ROW = r"\b[A-N][1-9][0-9]?\b"
ROWS = rf"{ROW}(?:(?:,| to|,? and|,? or) {ROW})*"
CITATION = re.compile(
    rf"\b[Rr]ows? (?P<named>{ROWS})"
    rf"|[(\[](?P<enclosed>{ROWS})(?: \.\.\.)?[)\]]"
    rf'|(?:#|//|""")[ -]*(?P<leading>{ROWS})(?=:|\s*$| -)',
    re.MULTILINE,
)
# A citation may go on in the next line of a comment.
LINE_BREAK = re.compile(r"(?<=[,\w])\n\s*(?:#|//)?[ \t]*(?=[A-Za-z])")
NAME_OF_TEST = re.compile(r"test_(?P<rows>[a-n][1-9][0-9]?(?:_(?:to_)?[a-n][1-9][0-9]?)*)_")
NATIVE_TEST = re.compile(r"^TEST\((\w+)\)", re.MULTILINE)
DEFINITION = re.compile(rf"^\s*- (?P<row>{ROW})", re.MULTILINE)


def rows_of_list(text: str) -> Iterator[str]:
    """The rows that "A1, B3 to B5" names: A1, B3, B4, B5."""
    previous = ""
    for to, row in re.findall(rf"( to )?({ROW})", text):
        if to and previous[0] == row[0]:
            between = range(int(previous[1:]) + 1, int(row[1:]))
            yield from (f"{row[0]}{number}" for number in between)
        yield row
        previous = row


def rows_in_text(text: str) -> set[str]:
    """The rows that comments and prose cite."""
    found: set[str] = set()
    for version in (text, LINE_BREAK.sub(" ", text)):
        for match in CITATION.finditer(version):
            found.update(rows_of_list(match[match.lastgroup or 0]))
    return found


def rows_in_name(function: str) -> set[str]:
    """The rows that the name of a test cites."""
    match = NAME_OF_TEST.match(function)
    if match is None:
        return set()
    return set(rows_of_list(match["rows"].upper().replace("_TO_", " to ").replace("_", ", ")))


def functions_that_test(source: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS) and node.name.startswith("test_"):
            yield node


def rows_shown(name: str, source: str) -> set[str]:
    """The rows that tests cite in their names and docstrings."""
    found: set[str] = set()
    if not name.endswith(".py"):
        return found.union(*(rows_in_name(f"test_{test}") for test in NATIVE_TEST.findall(source)))
    for test in functions_that_test(source):
        docstring = ast.get_docstring(test) or ""
        found |= rows_in_name(test.name) | rows_in_text(f'"""{docstring}')
    return found


def rows_cited(name: str, source: str) -> set[str]:
    """All rows that a file cites."""
    if name.endswith(".md"):
        return rows_in_text(source)
    return rows_in_text(source) | rows_shown(name, source)


def rows_explained_to_users(source: str) -> set[str]:
    """The rows that docstrings cite, those of attributes included."""
    return {
        row
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for row in rows_in_text(f'"""{node.value.value}')
    }


def in_order(rows: Iterable[str]) -> list[str]:
    return sorted(rows, key=lambda row: (row[0], int(row[1:])))


def definitions(behaviour: str) -> Counter[str]:
    return Counter(match["row"] for match in DEFINITION.finditer(behaviour))


def undefined(sources: Mapping[str, str], behaviour: str) -> list[str]:
    """Where a row is cited that has no definition."""
    defined = definitions(behaviour)
    return [
        f"{name}: {row}"
        for name, source in sources.items()
        for row in in_order(rows_cited(name, source) - defined.keys())
    ]


def defined_twice(behaviour: str) -> list[str]:
    return in_order(row for row, times in definitions(behaviour).items() if times > 1)


def not_shown(behaviour: str, tests: Mapping[str, str]) -> list[str]:
    """The rows that no test cites."""
    shown: set[str] = set().union(*(rows_shown(name, source) for name, source in tests.items()))
    return in_order(definitions(behaviour).keys() - shown)


def texts(paths: Iterable[Path]) -> dict[str, str]:
    return {str(path.relative_to(ROOT)): path.read_text() for path in paths}


def test_every_row_that_is_cited_is_defined() -> None:
    wrong = undefined(texts(SOURCES), BEHAVIOUR.read_text())
    assert not wrong, "cited, but not defined in docs/behaviour.md: " + ", ".join(wrong)


def test_no_row_is_defined_twice() -> None:
    wrong = defined_twice(BEHAVIOUR.read_text())
    assert not wrong, "docs/behaviour.md defines more than once: " + ", ".join(wrong)


def test_every_row_is_shown_by_a_test() -> None:
    wrong = not_shown(BEHAVIOUR.read_text(), texts(TESTS))
    assert not wrong, "docs/behaviour.md defines, and no test cites: " + ", ".join(wrong)


def test_users_are_told_the_fact_and_not_the_row() -> None:
    """What help() prints is read without docs/behaviour.md at hand."""
    wrong = [
        f"{name}: {row}"
        for name, source in texts(PACKAGE).items()
        for row in in_order(rows_explained_to_users(source))
    ]
    assert not wrong, "docstrings cite rows: " + ", ".join(wrong)


# --- what is planted is found --------------------------------------------------------------------

MADE_UP = """
# Behaviour

Rows have ids; row A1 is the first.

## A. One

- A1 It begins. *Otherwise*: not at all,
  see row A2.
- A2 It goes on.
  - A3 It ends.

## B. Another

- B1 Again.
- B12 And again.
* B13 is no definition, and neither is B14 - B15.
"""


def test_an_undefined_row_is_found() -> None:
    sources = {
        "a.cc": "// Row A1: fine. The others (rows B1,\n// B12).\n// It moves (A4).\n// A9",
        "b.py": "# A5: why\ndef test_b1_to_b3_nothing(): ...\ndef test_a2_a6_x(): '(row A2)'\n",
        "c.md": "It does so [A2], or so (A3, B14).",
        "d.h": "// Purpose: nothing (rows A1 to A3, B1).",
        "e.cc": "TEST(a2_a7_it_goes_on) {}\nTEST(f_1) {}",
    }
    assert undefined(sources, MADE_UP) == [
        "a.cc: A4",
        "a.cc: A9",
        "b.py: A5",
        "b.py: A6",
        "b.py: B2",
        "b.py: B3",
        "c.md: B14",
        "e.cc: A7",
    ]
    assert undefined({}, MADE_UP) == []


def test_a_row_that_is_defined_twice_is_found() -> None:
    assert defined_twice(MADE_UP) == []
    assert defined_twice(MADE_UP + "- A2 Differently.\n- B12 So.\n- B2 Once.\n") == ["A2", "B12"]


def test_a_row_that_no_test_shows_is_found() -> None:
    tests = {
        "a.py": "class TestIt:\n    def test_a1_it_begins(self): ...\n",
        "b.py": 'def test_the_rest():\n    """B12: again."""\n    # A2: is not claimed\n',
        "c.py": 'def helper():\n    """Row A3."""\n',
    }
    assert not_shown(MADE_UP, tests) == ["A2", "A3", "B1"]
    native = {"d.cc": "// Row A3.\nTEST(a2_it_goes_on) {\n"}
    assert not_shown(MADE_UP, tests | native) == ["A3", "B1"]
    assert not_shown(MADE_UP, tests | {"e.py": "def test_a2_to_a3_so(): '(B1)'"}) == []


def test_a_row_in_a_docstring_is_found() -> None:
    source = '''
"""A module (rows A1 and A2)."""
LIMIT = 5
"""How many (A3)."""
def f():
    """Row B1."""
    g("row B12")  # row B13
'''
    assert rows_explained_to_users(source) == {"A1", "A2", "A3", "B1"}


def test_every_form_of_a_citation_is_known() -> None:
    for text, rows in {
        "row A1": "A1",
        "Rows A1, B2 and C3 say": "A1 B2 C3",
        "rows A9 to A11, B2": "A9 A10 A11 B2",
        "rows B1,\n// B2": "B1 B2",
        "the rows\n    # B1 to B3 say": "B1 B2 B3",
        "it is so (A1).": "A1",
        "(A1, B2)": "A1 B2",
        "(A1, B2 ...)": "A1 B2",
        "see [N2]": "N2",
        "x = 1  # A1": "A1",
        "# --- A1 to A3 ------": "A1 A2 A3",
        "// A1, B2: why": "A1 B2",
        '"""A1, B2: what."""': "A1 B2",
    }.items():
        assert rows_in_text(text) == set(rows.split()), text


def test_what_is_no_row_is_left_alone() -> None:
    for text in (
        "0xB5 E3069283 B+tree F16 A1",
        "rows of B5 and C1 control characters",
        "the letters A1: nothing",
        "x = y  # noqa: B023",
        "# noqa: N818 - A1",
        "row A0, row O1, row A123, row A1B",
        "f(A1.start, B2[0], 'C3')",
        "https://example.org/#A1/B2",
    ):
        assert rows_in_text(text) == set(), text
    for name in ("test_4_gib", "test_a_1", "test_v2_events", "test_e2e_all", "a1_it"):
        assert rows_in_name(name) == set(), name
