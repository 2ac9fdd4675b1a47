"""Cases of bad input for pgalloc.pressure: headroom, sources, callbacks, levels, places to look."""

# ruff: noqa: E731
# mypy: disable-error-code="misc, assignment"

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hostile_cases import Case
from hostile_zoo import Accepts, Hands, anything, between, either, is_a, none, nothing

from pgalloc import pressure
from pgalloc.pressure import ManualSource, Monitor, PressureLevelListener

# Text is no path only if it has a NUL; nothing need be there.
PLACE: Accepts = lambda value: isinstance(value, str) and "\0" not in value
HEADROOM: Accepts = either(
    between(0, 2**63),
    lambda value: value == "4096" and type(value) is str,
    lambda value: isinstance(value, float) and 0 <= value < 1,
)
SOURCES: Accepts = lambda value: (
    value is None or (isinstance(value, (str, bytes, bytearray, list, dict)) and not value)
)


def on_monitor(use: Callable[[Monitor, Any], Any]) -> Callable[[Hands, Any], Any]:
    def call(h: Hands, value: Any) -> Any:
        with Monitor(sources=[ManualSource()]) as monitor:
            return use(monitor, value)

    return call


def make_monitor(**options: Any) -> None:
    Monitor(**options).close()


def listen(callback: Any = len, **options: Any) -> None:
    PressureLevelListener(callback, **options).stop()


def configure(**options: Any) -> None:
    try:
        pressure.configure(**options)
    finally:
        pressure.configure()


def cases_of_pressure() -> Iterator[Case]:
    """pgalloc.pressure."""
    name = "pressure.Monitor"
    yield Case(name, "headroom", lambda h, v: make_monitor(headroom=v, sources=[]), HEADROOM)
    yield Case(name, "sources", lambda h, v: make_monitor(sources=v), SOURCES)
    yield Case(f"{name}.subscribe", "callback", on_monitor(lambda m, v: m.subscribe(v)), callable)
    yield Case(f"{name}.subscribe", "level", on_monitor(lambda m, v: m.subscribe(len, v)), nothing)
    yield Case(f"{name}.events", "level", on_monitor(lambda m, v: m.events(v)), nothing)
    name = "pressure.EventStream"
    yield Case(name, "mailbox", lambda h, v: pressure.EventStream(v, None), nothing)

    name = "pressure.PressureLevelListener"
    yield Case(name, "callback", lambda h, v: listen(v), callable)
    yield Case(name, "level", lambda h, v: listen(level=v), nothing)
    yield Case(name, "cgroup", lambda h, v: listen(cgroup=v), none)
    for place in ("proc", "root"):
        yield Case(name, place, lambda h, v, p=place: listen(**{p: v}), PLACE)

    for function in ("find_memory_cgroup", "info"):
        for place in ("proc", "root"):
            call = lambda h, v, f=function, p=place: getattr(pressure, f)(**{p: v})
            accepts = is_a(str) if place == "root" else PLACE
            yield Case(f"pressure.{function}", place, call, accepts)
    environment = lambda h, v: pressure.info(environ=v)
    yield Case("pressure.info", "environ", environment, either(none, is_a(dict)))
    name = "pressure.configure"
    yield Case(name, "headroom", lambda h, v: configure(headroom=v), either(none, HEADROOM))
    yield Case(name, "proc", lambda h, v: configure(proc=v), PLACE)
    yield Case(name, "root", lambda h, v: configure(root=v), is_a(str))

    name = "pressure.ManualSource"
    yield Case(name, "name", lambda h, v: ManualSource(v).close(), is_a(str))
    yield Case(f"{name}.signal", "level", lambda h, v: ManualSource().signal(v), nothing)
    yield Case(f"{name}.take", "revents", lambda h, v: ManualSource().take(v), anything)
    base = "pressure.PressureSource"
    yield Case(base, "self", lambda h, v: pressure.PressureSource(v), nothing)
    for method in ("close", "take"):
        call = lambda h, v, m=method: getattr(pressure.PressureSource, m)(v, v, v)
        yield Case(f"{base}.{method}", "self", call, nothing)
