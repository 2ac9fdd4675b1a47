"""README's tour is code that runs, its commands are what CI runs; and links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(p for d in ("docs", "stress", "benchmarks") for p in (ROOT / d).glob("*.md")),
]
README = (ROOT / "README.md").read_text()


def block(marker: str) -> str:
    match = re.search(rf"<!-- {marker}.*?-->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert match is not None, marker
    return match.group(1)


def test_the_tour_prints_what_it_says() -> None:
    tour = block("tour")
    assert len([line for line in tour.splitlines() if line.strip()]) == 12
    printed = io.StringIO()
    names: dict[str, object] = {}
    with contextlib.redirect_stdout(printed):
        exec(compile(tour, "README.md", "exec"), names)
    assert printed.getvalue() == "8192\n4096 240\n"
    names["part"].release()  # type: ignore[attr-defined]
    names["mf"].close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", ["demo", "test"])
def test_there_is_one_command_for_each_job(command: str) -> None:
    assert len(block(f"command: {command}").strip().splitlines()) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target
