"""Where csrc can be changed, found by clang's parser.

The changes: a condition negated, a comparison moved by one, a constant changed by one, ``&&`` and
``||``, ``+`` and ``-``, ``std::min`` and ``std::max``, or two neighbouring statements exchanged, a
call or an assignment left out.
"""

from __future__ import annotations

import itertools
import re
import subprocess
import sysconfig
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pybind11
from clang.cindex import Cursor, CursorKind, Index, TypeKind

from mutation.mutant import CHOSEN, Mutant

_COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_SWAPS = {"&&": "||", "||": "&&"} | _COMPARISONS
_ARITHMETIC = {"+": "-", "-": "+"}
_INTEGERS = range(TypeKind.CHAR_U.value, TypeKind.INT128.value + 1)
_FUNCTIONS = {
    CursorKind.FUNCTION_DECL,
    CursorKind.FUNCTION_TEMPLATE,
    CursorKind.CXX_METHOD,
    CursorKind.CONSTRUCTOR,
    CursorKind.DESTRUCTOR,
    CursorKind.CONVERSION_FUNCTION,
}
_STATEMENTS = {
    CursorKind.CALL_EXPR,
    CursorKind.COMPOUND_ASSIGNMENT_OPERATOR,
    CursorKind.BINARY_OPERATOR,
    CursorKind.UNARY_OPERATOR,
}
_BARE = {CursorKind.UNEXPOSED_EXPR, CursorKind.PAREN_EXPR, CursorKind.CSTYLE_CAST_EXPR}


def find(csrc: Path, *, processes: int) -> list[Mutant]:
    """All mutants of all files below ``csrc``."""
    files = sorted([*csrc.rglob("*.cc"), *csrc.rglob("*.h")])
    arguments = _compiler_arguments(csrc)
    with ProcessPoolExecutor(processes) as pool:
        found = pool.map(_in_file, files, [csrc] * len(files), [arguments] * len(files))
        return [mutant for mutants in found for mutant in mutants]


def _compiler_arguments(csrc: Path) -> list[str]:
    """What lets clang read what g++ compiles: g++'s own folders of headers."""
    said = subprocess.run(
        ["g++", "-E", "-x", "c++", "-v", "/dev/null"], capture_output=True, text=True, check=True
    ).stderr
    listed = said.partition("search starts here:\n#include <...>")[2].partition("End of search")[0]
    folders = [line.strip() for line in listed.splitlines()[1:]]
    folders += [sysconfig.get_path("include"), pybind11.get_include()]
    # Intrinsics of g++ are errors to clang, and nothing we look for.
    return [
        "-std=c++20",
        "-DNDEBUG",  # as in the build: what only runs without is not there
        "-xc++",
        "-ferror-limit=0",
        f"-I{csrc}",
        *[f"-isystem{folder}" for folder in folders],
    ]


def _in_file(path: Path, csrc: Path, arguments: list[str]) -> list[Mutant]:
    unit = Index.create().parse(str(path), arguments)
    fatal = [each for each in unit.diagnostics if each.severity >= each.Fatal]
    if fatal:
        raise RuntimeError(f"clang cannot read {path}: {fatal[0]}")
    reader = _File(path, str(path.relative_to(csrc)))
    reader.visit(unit.cursor)
    return reader.mutants()


class _File:
    """One file on the way through its tree."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = str(path)
        self.name = name
        self.source = path.read_bytes()
        self.function = ""
        self.found: dict[tuple[int, int, str], Mutant] = {}

    def mutants(self) -> list[Mutant]:
        """What was found, in the order of the file."""
        seen: Counter[tuple[str, str]] = Counter()
        numbered = []
        for mutant in sorted(self.found.values(), key=lambda each: (each.start, each.end)):
            same = (mutant.function, mutant.what)
            numbered.append(Mutant(**{**vars(mutant), "nth": seen[same]}))
            seen[same] += 1
        return numbered

    def visit(self, cursor: Cursor) -> None:
        """Look for functions with a body that stands in this file."""
        for child in cursor.get_children():
            file = child.location.file
            if file is None or file.name != self.path:
                continue
            if child.kind in _FUNCTIONS:
                # What only the compiler runs cannot be changed at run time.
                if b"consteval" not in self._text(child):
                    self._visit_function(child)
            else:
                self.visit(child)

    def _visit_function(self, cursor: Cursor) -> None:
        parents: list[str] = []
        parent = cursor.semantic_parent
        while parent is not None and parent.kind in (
            CursorKind.CLASS_DECL,
            CursorKind.STRUCT_DECL,
            CursorKind.CLASS_TEMPLATE,
        ):
            parents.insert(0, parent.spelling)
            parent = parent.semantic_parent
        self.function = "::".join([*parents, cursor.spelling])
        for child in cursor.get_children():
            # What stands before the body initialises members.
            if child.kind is CursorKind.COMPOUND_STMT or child.kind.is_expression():
                self._visit_code(child)

    # --- Code -------------------------------------------------------------------------------------

    def _visit_code(self, cursor: Cursor) -> None:
        children = list(cursor.get_children())
        kind = cursor.kind
        if kind is CursorKind.WHILE_STMT and self._text(children[0]) == b"true":
            # What comes after a loop without an end is undefined: compilers leave it out.
            children = children[1:]
        elif kind is CursorKind.IF_STMT or kind is CursorKind.WHILE_STMT:
            self._condition(cursor, children)
        elif kind is CursorKind.CONDITIONAL_OPERATOR and len(children) == 3:
            self._negate(children[0], "condition")
        elif kind is CursorKind.RETURN_STMT and children:
            if children[0].type.get_canonical().kind is TypeKind.BOOL:
                self._negate(children[0], "result")
        elif kind is CursorKind.BINARY_OPERATOR and len(children) == 2:
            self._operator(cursor, *children)
        elif kind is CursorKind.CALL_EXPR:
            self._call(cursor, children)
        elif kind is CursorKind.INTEGER_LITERAL:
            self._constant(cursor)
        elif kind is CursorKind.CXX_BOOL_LITERAL_EXPR:
            self._boolean(cursor)
        elif kind is CursorKind.COMPOUND_STMT:
            self._statements(children)
        if kind in (CursorKind.CASE_STMT, CursorKind.STATIC_ASSERT):
            children = children[1:]
        for child in children:
            if child.kind is CursorKind.VAR_DECL and b"constexpr" in self._text(child):
                continue
            if child.kind not in (CursorKind.TYPE_REF, CursorKind.TEMPLATE_REF):
                self._visit_code(child)

    def _condition(self, cursor: Cursor, children: list[Cursor]) -> None:
        if children[0].kind in (CursorKind.VAR_DECL, CursorKind.DECL_STMT):
            return
        before = self.source[cursor.extent.start.offset : children[0].extent.start.offset]
        if re.fullmatch(rb"(if|while)\s*\(", before):
            self._negate(children[0], "condition")

    def _negate(self, cursor: Cursor, kind: str) -> None:
        text = self._text(cursor).decode()
        if not _balanced(text):
            return
        self._add(
            cursor, f"({CHOSEN} != static_cast<bool>({text}))", kind, f"{kind} {text} negated"
        )

    def _operator(self, cursor: Cursor, left: Cursor, right: Cursor) -> None:
        between = self.source[left.extent.end.offset : right.extent.start.offset]
        operator = between.decode().strip()
        if operator in _SWAPS:
            self._exchange(cursor, left, right, operator, _SWAPS[operator])
        elif operator in _ARITHMETIC and self._is_integer(cursor):
            self._exchange(cursor, left, right, operator, _ARITHMETIC[operator])

    def _call(self, cursor: Cursor, children: list[Cursor]) -> None:
        """A comparison by an operator of a class, and std::min and std::max."""
        operator = cursor.spelling.removeprefix("operator")
        if operator in _COMPARISONS and len(children) == 3:
            children.sort(key=lambda child: child.extent.start.offset)
            self._operator(cursor, children[0], children[2])
        text = self._text(cursor).decode()
        for one, other in (("std::min", "std::max"), ("std::max", "std::min")):
            if re.match(rf"{one}[<(]", text) and _balanced(text):
                changed = text.replace(one, other, 1)
                what = f"{_short(text)} -> {other}"
                self._add(cursor, f"({CHOSEN} ? {changed} : {text})", "operator", what)

    def _exchange(
        self, cursor: Cursor, left: Cursor, right: Cursor, operator: str, other: str
    ) -> None:
        a, b = self._text(left).decode(), self._text(right).decode()
        if not (_balanced(a) and _balanced(b)):
            return
        changed, original = f"{a} {other} {b}", f"{a} {operator} {b}"
        text = f"({CHOSEN} ? ({changed}) : ({original}))"
        self._add(cursor, text, "operator", f"{_short(original)} -> {other}")

    def _constant(self, cursor: Cursor) -> None:
        text = self._text(cursor).decode()
        if re.fullmatch(r"[0-9][0-9a-fA-Fx']*[uUlL]*", text):
            self._add(cursor, f"({CHOSEN} ? {text} + 1 : {text})", "constant", f"{text} + 1")

    def _boolean(self, cursor: Cursor) -> None:
        text = self._text(cursor).decode()
        if text in ("true", "false"):
            self._add(cursor, f"({CHOSEN} != {text})", "constant", f"{text} negated")

    # --- Statements -------------------------------------------------------------------------------

    def _statements(self, children: list[Cursor]) -> None:
        spans = [self._statement(child) for child in children]
        for span in spans:
            if span is not None:
                text = self.source[slice(*span)].decode()
                what = f"left out: {_short(text)}"
                self._add_span(*span, f"{{ if (!{CHOSEN}) {text} }}", "left out", what)
        for one, other in itertools.pairwise(spans):
            if one is not None and other is not None:
                self._exchange_statements(one, other)

    def _exchange_statements(self, one: tuple[int, int], other: tuple[int, int]) -> None:
        a, b = self.source[slice(*one)].decode(), self.source[slice(*other)].decode()
        between = self.source[one[1] : other[0]].decode()
        # Neither a comment nor lines that would move, nor what may come in any order.
        if between.strip() or "\n" in a + b or _independent(a, b):
            return
        text = f"{{ if ({CHOSEN}) {{ {b} {a} }} else {{ {a}{between}{b} }} }}"
        what = f"exchanged: {_short(a)} {_short(b)}"
        self._add_span(one[0], other[1], text, "exchanged", what)

    def _statement(self, cursor: Cursor) -> tuple[int, int] | None:
        """Bytes of a call or an assignment, with its semicolon."""
        inner = cursor
        while inner.kind in _BARE:
            children = list(inner.get_children())
            if not children:
                return None
            inner = children[-1]
        if inner.kind not in _STATEMENTS:
            return None
        start, end = cursor.extent.start.offset, cursor.extent.end.offset
        after = re.match(rb"\s*;", self.source[end : end + 20])
        text = self.source[start:end].decode()
        if after is None or not _balanced(text) or re.match(r"[A-Z_]+\(", text):
            return None
        return start, end + after.end()

    # --- Text -------------------------------------------------------------------------------------

    def _text(self, cursor: Cursor) -> bytes:
        return self.source[cursor.extent.start.offset : cursor.extent.end.offset]

    def _is_integer(self, cursor: Cursor) -> bool:
        return cursor.type.get_canonical().kind.value in _INTEGERS

    def _add(self, cursor: Cursor, text: str, kind: str, what: str) -> None:
        self._add_span(cursor.extent.start.offset, cursor.extent.end.offset, text, kind, what)

    def _add_span(self, start: int, end: int, text: str, kind: str, what: str) -> None:
        # The arguments of a macro stand where the macro is used, and their text elsewhere.
        if start >= end or b"PGALLOC_" in self.source[start:end]:
            return
        if "//" in text or "#" in text:
            return
        line = self.source.count(b"\n", 0, start) + 1
        lines = self.source.count(b"\n", start, end)
        what = " ".join(what.split())
        mutant = Mutant(self.name, start, end, text, kind, self.function, what, line, lines)
        self.found.setdefault((start, end, text), mutant)


def _independent(one: str, other: str) -> bool:
    """Whether two statements only assign to different things, or only register methods."""
    if ".def(" in one and ".def(" in other:
        return True
    targets = [re.match(r"([\w.\[\]\"]+(?:->\w+)*) = ", text) for text in (one, other)]
    if targets[0] is None or targets[1] is None:
        return False
    names = [re.escape(target[1]) for target in targets if target is not None]
    return not (re.search(rf"\b{names[0]}\b", other) or re.search(rf"\b{names[1]}\b", one))


def _balanced(text: str) -> bool:
    """Whether the text is more than a part of an expression."""
    return bool(text.strip()) and all(
        text.count(opening) == text.count(closing) for opening, closing in ("()", "{}", "[]")
    )


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 100 else text[:97] + "..."


def by_room(mutants: list[Mutant]) -> Iterator[tuple[str, list[Mutant]]]:
    """The rooms, and the mutants of each."""
    for room in sorted({mutant.room for mutant in mutants}):
        yield room, [mutant for mutant in mutants if mutant.room == room]
