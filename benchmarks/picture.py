"""The picture of a run: bars to both sides of the goal, on a logarithmic scale, as SVG.

A bar to the left is faster than the goal, one to the right slower, by the factor below it. Where
there is no goal, pgalloc's own figure stands in its place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

from benchmarks import text
from benchmarks.judge import Line

_WIDTH = 1040
_LABELS = 170
_FIGURES = 90
_BAR = 14
_ROW = 18
_GAP = 34
_TOP = 64
_DECADES_LEFT = 1.5
_DECADES_RIGHT = 3.0
_TICKS = (0.1, 1.0, 10.0, 100.0, 1000.0)

_STYLE = """
  svg { font: 12px system-ui, sans-serif; --ink: #24292f; --dim: #6e7781; --line: #d0d7de;
        --ours: #1a7f64; --go: #b08800; --limit: #afb8c1; --peer: #6f7fb8; --back: #ffffff;
        background: var(--back); }
  @media (prefers-color-scheme: dark) {
    svg { --ink: #e6edf3; --dim: #8b949e; --line: #30363d; --ours: #3fb894; --go: #d4a72c;
          --limit: #57606a; --peer: #8b9bd8; --back: #0d1117; }
  }
  text { fill: var(--ink); } .dim { fill: var(--dim); }
  .title { font-weight: 600; paint-order: stroke; stroke: var(--back); stroke-width: 4px; }
  .ours { fill: var(--ours); } .go { fill: var(--go); } .limit { fill: var(--limit); }
  .peer { fill: var(--peer); } .grid { stroke: var(--line); } .goal { stroke: var(--ink); }
"""
_LEGEND = (("ours", "pgalloc"), ("go", "Go original"), ("limit", "limit"), ("peer", "peers"))


@dataclass(frozen=True)
class _Bar:
    label: str
    style: str
    value: float


def picture(lines: Sequence[Line]) -> str:
    """The whole SVG document."""
    parts: list[str] = []
    y = float(_TOP)
    for _, group in groupby(lines, key=lambda line: line.workload.name):
        block = list(group)
        y = _draw_block(parts, block, y) + _GAP
    height = y
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height:.0f}" '
        f'width="{_WIDTH}" height="{height:.0f}">',
        f"<style>{_STYLE}</style>",
        *_draw_legend(),
        *_draw_grid(height),
    ]
    return "\n".join([*head, *parts, "</svg>\n"])


def _draw_legend() -> list[str]:
    drawn = [
        _text(
            10, 20, "Multiples of the goal, logarithmic: to the left of the line is better", "title"
        ),
    ]
    for number, (style, name) in enumerate(_LEGEND):
        x = _WIDTH - 420 + 105 * number
        drawn.append(f'<rect class="{style}" x="{x}" y="10" width="12" height="12" rx="2"/>')
        drawn.append(_text(x + 18, 20, name, "dim"))
    return drawn


def _draw_grid(height: float) -> list[str]:
    drawn = []
    for tick in _TICKS:
        x = _x(tick)
        style = "goal" if tick == 1 else "grid"
        drawn.append(
            f'<line class="{style}" x1="{x:.1f}" y1="{_TOP - 14}" x2="{x:.1f}" '
            f'y2="{height - _GAP / 2:.1f}"/>'
        )
        label = "goal" if tick == 1 else f"{tick:g} x"
        drawn.append(_text(x, _TOP - 20, label, "dim", "middle"))
    return drawn


def _draw_block(parts: list[str], block: Sequence[Line], y: float) -> float:
    workload = block[0].workload
    base = next((line.goal for line in block if line.goal is not None), block[0].figure)
    goal = block[0].goal or base
    of_what = "goal" if workload.goals else "pgalloc"
    title = f"{workload.title} ({of_what}: {text.figure(goal, workload.unit)})"
    parts.append(_text(10, y + 4, title, "title"))
    y += 14
    for bar in _bars(block):
        _draw_bar(parts, bar, base, workload.unit, y)
        y += _ROW
    return y


def _bars(block: Sequence[Line]) -> list[_Bar]:
    workload = block[0].workload
    bars = [_Bar(line.implementation, _style_of(line), line.figure) for line in block]
    original = [("Go 2024", workload.go_2024), ("Go 2026", workload.go_2026)]
    bars += [_Bar(label, "go", values[-1]) for label, values in original if values]
    return bars


def _style_of(line: Line) -> str:
    if line.is_ours:
        return "ours"
    return "limit" if line.is_limit else "peer"


def _draw_bar(parts: list[str], bar: _Bar, base: float, unit: str, y: float) -> None:
    zero, end = _x(1.0), _x(bar.value / base)
    left, width = min(zero, end), max(abs(end - zero), 1.5)
    parts.append(_text(_LABELS - 8, y + 11, bar.label, "dim", "end"))
    parts.append(
        f'<rect class="{bar.style}" x="{left:.1f}" y="{y}" width="{width:.1f}" '
        f'height="{_BAR}" rx="2"/>'
    )
    parts.append(_text(max(zero, end) + 6, y + 11, text.figure(bar.value, unit), ""))


def _x(value: float) -> float:
    """Where a multiple of the goal stands."""
    decades = min(max(math.log10(value), -_DECADES_LEFT), _DECADES_RIGHT)
    usable = _WIDTH - _LABELS - _FIGURES
    return _LABELS + usable * (decades + _DECADES_LEFT) / (_DECADES_LEFT + _DECADES_RIGHT)


def _text(x: float, y: float, content: str, style: str, anchor: str = "start") -> str:
    return (
        f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
        f"{escape(content)}</text>"
    )
