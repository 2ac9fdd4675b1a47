"""Mutants by name: faults that once went unnoticed, or that matter most. From named.toml.

They are written down as text that is replaced, so a change of that text has to change them, too.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

from mutation.mutant import CHOSEN, Mutant
from mutation.tree import ROOT

_LIST = Path(__file__).with_name("named.toml")


def mutants() -> list[Mutant]:
    """All of them."""
    return [_mutant(**entry) for entry in tomllib.loads(_LIST.read_text())["mutant"]]


def _mutant(what: str, file: str, before: str, after: str) -> Mutant:
    source = (ROOT / "csrc" / file).read_text()
    if source.count(before) != 1:
        raise ValueError(f"{_LIST.name}: csrc/{file} has {before!r} {source.count(before)} times")
    if "$CHOSEN" not in after or before.count("\n") != after.count("\n"):
        raise ValueError(f"{_LIST.name}: {after!r} never asks for $CHOSEN, or moves lines")
    start = len(source[: source.index(before)].encode())
    line = source[: source.index(before)].count("\n") + 1
    text = after.replace("$CHOSEN", CHOSEN)
    end = start + len(before.encode())
    lines = before.count("\n")
    return Mutant(file, start, end, text, "by name", "by name", what, line, lines)
