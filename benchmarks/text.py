"""Figures as people read them."""

from __future__ import annotations

_UNITS = ((1e9, "s"), (1e6, "ms"), (1e3, "us"), (1.0, "ns"))


def figure(value: float, unit: str) -> str:
    """Three digits and a unit."""
    if unit == "bytes":
        return f"{value:.3g} B"
    for size, name in _UNITS:
        if value >= size or name == "ns":
            return f"{_three_digits(value / size)} {name}"
    raise AssertionError


def ratio(value: float | None) -> str:
    """A multiple, or nothing."""
    return "" if value is None else f"{_three_digits(value)} x"


def span(values: tuple[float, ...], unit: str) -> str:
    """One figure, or from the lowest to the highest."""
    return "-".join(figure(value, unit) for value in values)


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"
