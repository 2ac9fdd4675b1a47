"""No test sleeps or looks at a clock without saying why: "time:" and the reason, in a comment.

What takes part in nothing but a measurement needs no reason; what is compared does. Waiting is
tests/waiting.py's. In C++ it is only sleeping that is looked for.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("tests", "stress")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".cc", ".h") and path != ROOT / "tests/waiting.py"
]
CLOCKS = ("monotonic", "perf_counter", "process_time", "thread_time", "time")
CLOCKS += tuple(f"{name}_ns" for name in CLOCKS)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

REASON = re.compile(r"(#|//) time: \w")
SLEEPS_IN_SCRIPTS = re.compile(r"\bsleep\(")
SLEEPS_IN_CPP = re.compile(r"\b(u?sleep|nanosleep|sleep_(for|until))\s*\(")


def faults_of_python(source: str) -> set[int]:
    """The numbers of the lines that need a reason and have none."""
    tree = ast.parse(source)
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }

    def has_reason(node: ast.expr) -> bool:
        first = node.lineno
        while first > 1 and lines[first - 2].lstrip().startswith("#"):
            first -= 1
        numbers = range(first, (node.end_lineno or node.lineno) + 1)
        return any(REASON.search(comments.get(number, "")) for number in numbers)

    faults = {
        node.lineno
        for node in (*_sleeps(tree), *_comparisons_with_a_time(tree))
        if not has_reason(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for number in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                line = lines[number - 1]
                if not SLEEPS_IN_SCRIPTS.search(line) or REASON.search(line):
                    continue
                if SLEEPS_IN_SCRIPTS.search(node.value):
                    faults.add(number)
    return faults


def _sleeps(tree: ast.AST) -> Iterator[ast.expr]:
    """Waiting for an event for less than a second is meant to end without it."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.args:
            case [ast.Constant(value=float(seconds))] if _name(node.func) == "wait":
                if 0 < seconds < 1:
                    yield node
            case _ if _name(node.func) == "sleep":
                yield node


def _comparisons_with_a_time(tree: ast.AST) -> Iterator[ast.expr]:
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    for nodes in (list(_outside_functions(tree)), *(list(ast.walk(one)) for one in functions)):
        times: set[str] = set()
        while found := set(_assigned_times(nodes, times)) - times:
            times |= found
        for node in nodes:
            if not isinstance(node, ast.Compare) or isinstance(node.ops[0], (ast.Is, ast.IsNot)):
                continue
            if _has_time(node, times):
                yield node


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, FUNCTIONS):
            yield from _outside_functions(child)


def _assigned_times(nodes: list[ast.AST], times: set[str]) -> Iterator[str]:
    """The names that are given a time, or something that was reckoned from one."""
    for node in nodes:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
            targets = [node.target]
        else:
            continue
        if node.value is not None and _has_time(node.value, times):
            for target in targets:
                values = target.elts if isinstance(target, ast.Tuple) else [target]
                yield from (value.id for value in values if isinstance(value, ast.Name))


def _has_time(node: ast.AST, times: set[str]) -> bool:
    """Whether a clock is read in it, or such a name. What is called with a time gives none."""
    if isinstance(node, ast.Call):
        is_clock = isinstance(node.func, ast.Attribute) and _name(node.func.value) == "time"
        return _name(node.func) in CLOCKS and (is_clock or isinstance(node.func, ast.Name))
    if isinstance(node, ast.Name):
        return node.id in times
    return any(_has_time(child, times) for child in ast.iter_child_nodes(node))


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def faults_of_cpp(source: str) -> set[int]:
    lines = ["", *source.splitlines()]
    return {
        number
        for number, line in enumerate(lines)
        if SLEEPS_IN_CPP.search(line)
        and not REASON.search(line)
        and not (lines[number - 1].lstrip().startswith("//") and REASON.search(lines[number - 1]))
    }


def test_time_has_a_reason() -> None:
    where = []
    for path in SOURCES:
        faults_of = faults_of_python if path.suffix == ".py" else faults_of_cpp
        faults = faults_of(path.read_text())
        where += [f"{path.relative_to(ROOT)}:{number}" for number in sorted(faults)]
    assert not where, "no reason is given ('time: ...' in a comment): " + ", ".join(where)


# "nap" stands for "sleep", or this file would have to give reasons as well.
PLANTED = '''
import asyncio, time
from time import nap, monotonic
time.nap(1)  # FAULT
nap(1)  # FAULT
async def main(): await asyncio.nap(1)  # FAULT
while not stop.wait(0.01): pass  # FAULT
stop.wait(5), stop.wait(0), stop.wait(timeout)
time.nap(1)  # time: the load
# time: the load
time.nap(1)
# noqa: B023  # time: the load
time.nap(
    1
)
# time:
time.nap(1)  # FAULT
def wait():
    end = time.monotonic() + 5
    left = end - 1
    while time.monotonic() < end: pass  # FAULT
    while left > 0: pass  # FAULT
    while end > 0: pass  # time: a bound on a hang
    assert time.perf_counter() - end < 1  # FAULT
    if (now := monotonic()) == 1: pass  # FAULT
    begin, other = time.time_ns(), 0
    assert begin > other  # FAULT
def measure():
    begin = time.monotonic()
    print(time.monotonic() - begin, end=5)
    assert f(timeout=time.monotonic()) > 1
    end = 5
    assert end > 4
script = """
time.nap(1)  # FAULT
time.nap(1)  # time: the load
"""
fraction = f"{script} nap(1)"  # FAULT
processes = ["nap", "60"]
"nap"
'''.replace("nap", "sleep")


def test_what_is_planted_is_found() -> None:
    wanted = {
        number for number, line in enumerate(PLANTED.splitlines(), 1) if line.endswith("# FAULT")
    }
    assert faults_of_python(PLANTED) == wanted


def test_what_is_planted_in_cpp_is_found() -> None:
    planted = """
usnap(5);
std::this_thread::snap_for(x);
std::this_thread::snap_for(x);  // time: the load
// time: the load
nanosnap(x, y);
reclaimer_snaps_ = snapy();
""".replace("snap", "sleep")
    assert faults_of_cpp(planted) == {2, 3}
