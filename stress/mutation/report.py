"""What is known of the mutants, as tables."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path

from mutation.campaign import Result

_REASONS = Path(__file__).with_name("reasons.toml")


def read_reasons() -> dict[str, str]:
    """Why a mutant may survive, by its name."""
    return dict(tomllib.loads(_REASONS.read_text())["reasons"])


def print_report(results: Iterable[Result], reasons: dict[str, str], *, share: float) -> int:
    """Print it; the exit status of the command."""
    results = sorted(results, key=lambda each: (each.room, each.name))
    print(
        "\n| room | mutants | killed | survived, with a reason | survived |\n|---|---|---|---|---|"
    )
    for room in sorted({result.room for result in results}):
        print(_row(room, [each for each in results if each.room == room], reasons))
    print(_row("all", results, reasons))
    alive = [result for result in results if result.outcome != "killed"]
    open_ends = [result for result in alive if result.name not in reasons]
    for title, group in (
        ("Without a reason", open_ends),
        ("With a reason", [result for result in alive if result.name in reasons]),
    ):
        print(f"\n{title}: {len(group)}")
        for result in group:
            print(f"- {result.name} (line {result.line}, {result.kind}): {_outcome(result)}")
            if result.name in reasons:
                print(f"  {reasons[result.name]}")
    killed = len(results) - len(alive)
    enough = bool(results) and killed >= share * len(results)
    print(f"\n{killed} of {len(results)} killed, {killed / max(len(results), 1):.1%}")
    return 0 if enough and not open_ends else 1


def _outcome(result: Result) -> str:
    return f"{result.outcome}, {result.reaching} tests reach it"


def _row(name: str, results: list[Result], reasons: dict[str, str]) -> str:
    alive = [result for result in results if result.outcome != "killed"]
    with_reason = sum(result.name in reasons for result in alive)
    killed = len(results) - len(alive)
    return f"| {name} | {len(results)} | {killed} | {with_reason} | {len(alive) - with_reason} |"
