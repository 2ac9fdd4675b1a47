"""cached: a function's results in a Cache."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from pgalloc.cache.keys import Key
from pgalloc.cache.mapping import Cache
from pgalloc.cache.values import TooLargeError
from pgalloc.errors import OutOfMemoryError

P = ParamSpec("P")


def cached(
    cache: Cache,
    key: Callable[..., Key] | None = None,
    *,
    expire: float | None = None,
    tag: Key | None = None,
) -> Callable[[Callable[P, Any]], Callable[P, memoryview]]:
    """A decorator for functions that return bytes: their results are kept in ``cache``.

    What the function returned comes back as a read-only memoryview, whether it was kept or not.
    ``key(*args, **kwargs)`` makes the key; without it, the key is the function's name with its
    arguments, which then have to be possible keys. ``expire`` and ``tag`` are those of Cache.put().

    Two threads that miss at the same time both call the function. The wrapper has ``cache``,
    ``cache_key`` and ``__wrapped__``.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be a Cache, not {type(cache).__name__}")
    if key is not None and not callable(key):
        raise TypeError("key must be callable")

    def decorate(function: Callable[P, Any]) -> Callable[P, memoryview]:
        name = f"{function.__module__}.{function.__qualname__}"

        def default_key(*args: Any, **kwargs: Any) -> Key:
            return (name, args, tuple(sorted(kwargs.items())))

        make_key = default_key if key is None else key

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> memoryview:
            made = make_key(*args, **kwargs)
            view = cache.get(made)
            if view is not None:
                return view
            data = function(*args, **kwargs)
            try:
                cache.put(made, data, expire=expire, tag=tag)
            except (TooLargeError, OutOfMemoryError):
                view = None
            else:
                view = cache._look_again(made)
            return memoryview(bytes(data)) if view is None else view

        wrapper.cache = cache  # type: ignore[attr-defined]
        wrapper.cache_key = make_key  # type: ignore[attr-defined]
        return wrapper

    return decorate
