"""Cases of bad input for Cache and what goes with it: keys, values, sizes, callbacks, payloads."""

# ruff: noqa: E731
# mypy: disable-error-code="misc, assignment"

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from conftest import PAGE
from hostile_cases import Case, enter
from hostile_pressure import HEADROOM
from hostile_snapshots import hook_name
from hostile_zoo import Accepts, Hands, anything, between, either, int_of, is_a, none, nothing

import pgalloc
from pgalloc import Cache, testing
from pgalloc.testing import ManualPressure

BYTES: Accepts = is_a(bytes, bytearray)
NBYTES: Accepts = either(between(0, 2**63), lambda value: value == "4096" and type(value) is str)
MAXSIZE: Accepts = either(none, lambda value: NBYTES(value) and (int_of(value) or PAGE) >= PAGE)
EMPTY: Accepts = lambda value: isinstance(value, (str, bytes, list, dict)) and not value
EXPIRE: Accepts = lambda value: (
    isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
)


INT64: Accepts = lambda value: type(value) is int and -(2**63) <= value < 2**63


def is_key(value: Any) -> bool:
    """Exactly these types; the zoo's tuple is one of ints."""
    return type(value) in (str, bytes, int, tuple)


def is_iterable(value: Any) -> bool:
    return hasattr(type(value), "__iter__") or hasattr(type(value), "__getitem__")


def on_cache(use: Callable[[Cache, Any], Any]) -> Callable[[Hands, Any], Any]:
    """A refusal must leave the cache as it was; a missing key is no refusal."""

    def call(h: Hands, value: Any) -> None:
        with Cache(name="hostile") as cache:
            cache.put("kept", b"v" * 100, tag="t")
            cache["large"] = b"w" * 9000
            try:
                with suppress(KeyError):
                    use(cache, value)
            except BaseException:
                assert {key: bytes(view) for key, view in cache.items()} == {
                    "kept": b"v" * 100,
                    "large": b"w" * 9000,
                }
                raise
            finally:
                testing.verify_cache(cache)

    return call


def make(**options: Any) -> None:
    Cache(**options).close()


def decorate(cache: Cache, **options: Any) -> None:
    pgalloc.cached(cache, **options)(lambda: b"result")()


def restore(h: Hands, **options: Any) -> None:
    arguments: dict[str, Any] = {"memory_file": h.mf, "payload": b""}
    Cache.from_snapshot(**{**arguments, **options}).close()


def demand(value: Any) -> None:
    with ManualPressure() as pressure:
        pressure.demand(value)


def cases_of_caches() -> Iterator[Case]:
    """Cache, cached, and what tests of them use."""
    options: dict[str, Accepts] = {
        "maxsize": MAXSIZE,
        "file": none,
        "headroom": HEADROOM,
        "policy": nothing,
        "on_discard": either(none, callable),
    }
    for option, accepts in options.items():
        yield Case("Cache", option, lambda h, v, o=option: make(**{o: v}), accepts)
        if option != "file":
            call = lambda h, v, o=option: restore(h, **{o: v})
            yield Case("Cache.from_snapshot", option, call, accepts)
    named: Accepts = either(none, hook_name)
    yield Case("Cache", "name", lambda h, v: make(file=h.mf, name=v), named)
    yield Case("Cache", "policy like one", lambda h, v: make(policy=_str_like(v)), nothing)
    restored = "Cache.from_snapshot"
    yield Case(restored, "memory_file", lambda h, v: restore(h, memory_file=v), nothing)
    empty: Accepts = lambda value: isinstance(value, bytes) and not value
    yield Case(restored, "payload", lambda h, v: restore(h, payload=v), empty)
    yield Case(restored, "file", lambda h, v: restore(h, file=v), nothing)

    put = "Cache.put"
    yield Case(put, "key", on_cache(lambda c, v: c.put(v, b"x")), is_key)
    yield Case(put, "data", on_cache(lambda c, v: c.put("kept", v)), BYTES)
    yield Case(
        put, "expire", on_cache(lambda c, v: c.put("a", b"", expire=v)), either(none, EXPIRE)
    )
    yield Case(put, "tag", on_cache(lambda c, v: c.put("a", b"", tag=v)), either(none, is_key))
    yield Case(put, "item key", on_cache(lambda c, v: c.__setitem__(v, b"x")), is_key)
    yield Case("Cache.get", "key", on_cache(lambda c, v: c.get(v)), anything)
    yield Case("Cache.get_bytes", "key", on_cache(lambda c, v: c.get_bytes(v)), anything)
    yield Case("Cache.get_bytes", "default", on_cache(lambda c, v: c.get_bytes("a", v)), anything)
    yield Case("Cache.get", "item", on_cache(lambda c, v: c[v]), is_key)
    yield Case("Cache.get", "default", on_cache(lambda c, v: c.get("a", v)), anything)
    yield Case("Cache.get", "in", on_cache(lambda c, v: v in c), anything)
    yield Case("Cache.pop", "key", on_cache(lambda c, v: c.pop(v)), is_key)
    yield Case("Cache.pop", "with default", on_cache(lambda c, v: c.pop(v, None)), anything)
    yield Case("Cache.pop", "default", on_cache(lambda c, v: c.pop("a", v)), anything)
    yield Case("Cache.pop", "del", on_cache(lambda c, v: c.__delitem__(v)), is_key)
    name = "Cache.setdefault"
    yield Case(name, "key", on_cache(lambda c, v: c.setdefault(v, b"x")), is_key)
    yield Case(name, "default", on_cache(lambda c, v: c.setdefault("a", v)), BYTES)
    yield Case("Cache.update", "other", on_cache(lambda c, v: c.update(v)), EMPTY)
    name = "Cache.add"
    yield Case(name, "key", on_cache(lambda c, v: c.add(v, b"x")), is_key)
    yield Case(name, "data", on_cache(lambda c, v: c.add("new", v)), BYTES)
    expire = either(none, EXPIRE)
    yield Case(name, "expire", on_cache(lambda c, v: c.add("new", b"", expire=v)), expire)
    yield Case(name, "tag", on_cache(lambda c, v: c.add("new", b"", tag=v)), either(none, is_key))
    name = "Cache.incr"
    yield Case(name, "key", on_cache(lambda c, v: c.incr(v)), is_key)
    yield Case(name, "delta", on_cache(lambda c, v: c.incr("n", v)), INT64)
    yield Case(name, "initial", on_cache(lambda c, v: c.incr("n", initial=v)), either(none, INT64))
    name = "Cache.touch"
    yield Case(name, "key", on_cache(lambda c, v: c.touch(v)), anything)
    yield Case(name, "expire", on_cache(lambda c, v: c.touch("a", expire=v)), expire)
    yield Case("Cache.get_many", "keys", on_cache(lambda c, v: c.get_many(v)), is_iterable)
    yield Case("Cache.get_many", "a key", on_cache(lambda c, v: c.get_many([v])), anything)
    name = "Cache.put_many"
    yield Case(name, "items", on_cache(lambda c, v: c.put_many(v)), EMPTY)
    yield Case(name, "a key", on_cache(lambda c, v: c.put_many([(v, b"x")])), is_key)
    yield Case(name, "data", on_cache(lambda c, v: c.put_many({"a": v})), BYTES)
    yield Case(name, "expire", on_cache(lambda c, v: c.put_many({}, expire=v)), expire)
    yield Case(name, "tag", on_cache(lambda c, v: c.put_many({}, tag=v)), either(none, is_key))
    yield Case("Cache.evict", "nbytes", on_cache(lambda c, v: c.evict(v)), NBYTES)
    yield Case("Cache.evict_tag", "tag", on_cache(lambda c, v: c.evict_tag(v)), is_key)

    name = "cached"
    yield Case(name, "cache", lambda h, v: pgalloc.cached(v), nothing)
    key = on_cache(lambda c, v: decorate(c, key=v))
    yield Case(name, "key", key, either(none, callable))
    made = on_cache(lambda c, v: decorate(c, key=lambda: v))
    yield Case(name, "what key returns", made, is_key)
    result = on_cache(lambda c, v: pgalloc.cached(c)(lambda: v)())
    yield Case(name, "what the function returns", result, either(none, BYTES))
    text: Accepts = lambda value: type(value) is str
    yield Case(name, "name", on_cache(lambda c, v: decorate(c, name=v)), either(none, text))
    yield Case(name, "result", on_cache(lambda c, v: decorate(c, result=v)), nothing)
    yield Case(name, "wait", on_cache(lambda c, v: decorate(c, wait=v)), is_a(bool))
    for option, accepts in (("expire", EXPIRE), ("tag", is_key)):
        call = on_cache(lambda c, v, o=option: decorate(c, **{o: v}))
        yield Case(name, option, call, either(none, accepts))

    name = "testing.ManualPressure"
    yield Case(name, "surplus", lambda h, v: enter(ManualPressure(*[v])), nothing)
    yield Case(f"{name}.demand", "nbytes", lambda h, v: demand(v), between(0, 2**63))
    yield Case("testing.verify_cache", "cache", lambda h, v: testing.verify_cache(v), nothing)


def _str_like(value: Any) -> Any:
    """Text that is no policy, whatever the value is."""
    return f"lru {type(value).__name__}"
