"""cached: a function's results in a Cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, overload

from pgalloc.arguments import checked_flag
from pgalloc.cache.flights import MISSING, Flights
from pgalloc.cache.functions import Identity
from pgalloc.cache.keys import Key, check_tag, why_no_key
from pgalloc.cache.mapping import Cache
from pgalloc.cache.values import Expire, TooLargeError, buffer_of, lifetime
from pgalloc.errors import ForkedError, OutOfMemoryError, OwnerGoneError, SharingError

P = ParamSpec("P")
R = TypeVar("R", memoryview, bytes)
R_co = TypeVar("R_co", covariant=True)

# Of a cache that another process owns, and that has ended or does not answer.
_OUT_OF_REACH = (ForkedError, OwnerGoneError, SharingError)

_NONE = b"pgalloc.cached: None \x9b\x1f\xd0\x5c\x7e\xe3\x42\xa8\x11\x96\x2d"
"""What is kept for None."""


class CacheInfo(NamedTuple):
    """What cache_info() of a cached function tells.

    Attributes:
        hits: calls that found a result.
        misses: calls that found none, also those that waited for another one to compute it.
        maxsize: that of the cache.
        currsize: that of the cache.
    """

    hits: int
    misses: int
    maxsize: int | None
    currsize: int


class _Decorator(Protocol[R_co]):
    @overload
    def __call__(
        self, function: Callable[P, Coroutine[Any, Any, Any]], /
    ) -> Callable[P, Coroutine[Any, Any, R_co]]: ...
    @overload
    def __call__(self, function: Callable[P, Any], /) -> Callable[P, R_co]: ...


@overload
def cached(
    cache: Cache,
    key: Callable[..., Key] | None = ...,
    *,
    name: str | None = ...,
    expire: Expire | None = ...,
    tag: Key | None = ...,
    wait: bool = ...,
) -> _Decorator[memoryview]: ...
@overload
def cached(
    cache: Cache,
    key: Callable[..., Key] | None = ...,
    *,
    name: str | None = ...,
    expire: Expire | None = ...,
    tag: Key | None = ...,
    result: type[R],
    wait: bool = ...,
) -> _Decorator[R]: ...
def cached(
    cache: Cache,
    key: Callable[..., Key] | None = None,
    *,
    name: str | None = None,
    expire: Expire | None = None,
    tag: Key | None = None,
    result: Any = memoryview,
    wait: bool = True,
) -> Any:
    """A decorator for functions that return bytes: their results are kept in ``cache``.

    What the function returned comes back as a read-only memoryview, or with ``result=bytes`` as
    bytes, whether it was kept or not. None comes back as None, and is kept, too. Exceptions are
    not. ``expire`` and ``tag`` are those of Cache.put().

    The arguments have to be possible keys, or ``key(*args, **kwargs)`` makes one of them. Two
    functions never share results, whatever their keys, unless they are given the same ``name``.
    Without one a function is known by its module, its qualified name, its code and its defaults,
    so that its results are found again in a restored Cache. A lambda, a closure, a partial, an
    object, or a function that was redefined, is known in this process only, as itself; so is what
    is defined in a notebook.

    Callers that miss the same key at once wait for the first of them, in other threads and tasks,
    too; what it raises is raised by all. With ``wait=False`` each calls the function. A call of
    the same key from within calls the function again.

    Also for ``async def``, methods and static methods, not for generators. In a forked child it
    uses its parent's Cache. Where the process that owns the cache has ended, or does not answer,
    the function is called.

    The decorated function has ``cache_info()`` (hits, misses, and the cache's maxsize and
    currsize), ``cache_clear()``, which removes its results and no others, ``cache_key()``, which
    makes the key for the same arguments, ``cache`` and ``__wrapped__``. Raises TypeError for
    arguments that are no key, OptionError.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be a Cache, not {type(cache).__name__}")
    if key is not None and not callable(key):
        raise TypeError("key must be callable")
    if not (name is None or type(name) is str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if result is not memoryview and result is not bytes:
        raise TypeError("result must be memoryview or bytes")
    checked_flag(wait, "wait")
    lifetime(expire)
    if tag is not None:
        check_tag(tag)

    def decorate(function: Any) -> Any:
        if isinstance(function, (staticmethod, classmethod)):
            return type(function)(decorate(function.__func__))
        if not callable(function):
            raise TypeError(f"what is cached must be callable, not {type(function).__name__}")
        call = getattr(type(function), "__call__", None)  # noqa: B004 (of an object's class)
        if any(map(inspect.isgeneratorfunction, (function, call))) or any(
            map(inspect.isasyncgenfunction, (function, call))
        ):
            raise TypeError("the results of a generator cannot be cached: return bytes")
        results = _Results(cache, Identity(function, name), key, expire, tag, result is bytes)
        flights = Flights(results.look_again, results.keep)

        if any(map(inspect.iscoroutinefunction, (function, call))):

            async def wrapper_async(*args: Any, **kwargs: Any) -> Any:
                made = results.key(*args, **kwargs)
                found = results.look(made)
                if found is not MISSING:
                    return found
                if wait:
                    return await flights.run_async(made, function, *args, **kwargs)
                return results.keep(made, await function(*args, **kwargs), True)

            wrapper: Any = wrapper_async
        else:

            def wrapper_sync(*args: Any, **kwargs: Any) -> Any:
                made = results.key(*args, **kwargs)
                found = results.look(made)
                if found is not MISSING:
                    return found
                if wait:
                    return flights.run(made, function, *args, **kwargs)
                return results.keep(made, function(*args, **kwargs), True)

            wrapper = wrapper_sync

        def cache_clear() -> None:
            """Remove the results of this function, and begin to count anew."""
            flights.forget()
            results.clear()

        decorated: Any = functools.wraps(function)(wrapper)
        decorated.cache = cache
        decorated.cache_key = results.key
        decorated.cache_info = results.info
        decorated.cache_clear = cache_clear
        return decorated

    return decorate


class _Results:
    """The results of one function in its Cache."""

    def __init__(
        self,
        cache: Cache,
        identity: Identity,
        make_key: Callable[..., Key] | None,
        expire: Expire | None,
        tag: Key | None,
        as_bytes: bool,
    ) -> None:
        self._cache = cache
        self._identity = identity
        self._make_key = make_key
        self._expire = expire
        self._tag = tag
        self._as_bytes = as_bytes
        self._hits = self._misses = 0

    def key(self, /, *args: Any, **kwargs: Any) -> Key:
        """The key of a call with these arguments."""
        who = self._identity()
        if self._make_key is not None:
            made = self._make_key(*args, **kwargs)
            if (why := why_no_key(made)) is not None:
                raise TypeError(f"what key= made is no key: {why}")
            return (who, made)
        key = (who, args, tuple(sorted(kwargs.items())))
        if (why := why_no_key(key)) is not None:
            raise TypeError(
                f"the arguments are no key ({why}): pass key= to cached(), a function that makes "
                "one of them"
            )
        return key

    def look(self, key: Key) -> Any:
        """What is kept, or MISSING. Counted."""
        view = None
        with suppress(*_OUT_OF_REACH):
            view = self._cache.get(key)
        if view is None:
            self._misses += 1
            return MISSING
        self._hits += 1
        return self._shown(view)

    def look_again(self, key: Key) -> Any:
        """What is kept, or MISSING. Not counted."""
        view = None
        with suppress(*_OUT_OF_REACH):
            view = self._cache._look_again(key)
        return MISSING if view is None else self._shown(view)

    def _shown(self, view: memoryview) -> Any:
        if view.nbytes == len(_NONE) and view == _NONE:
            return None
        return view.tobytes() if self._as_bytes else view

    def keep(self, key: Key, data: Any, store: bool) -> Any:
        """What callers get; it is kept if there is room, and with ``store``."""
        with buffer_of(_NONE if data is None else data) as buffer:
            plain = buffer.nbytes != len(_NONE) or buffer.tobytes() != _NONE
            if store and (plain or data is None):
                with suppress(TooLargeError, OutOfMemoryError, *_OUT_OF_REACH):
                    self._cache.put(key, buffer, expire=self._expire, tag=self._tag)
                    if plain and not self._as_bytes:
                        view = self._cache._look_again(key)
                        if view is not None:
                            return view
            if data is None:
                return None
            copied = data if type(data) is bytes else buffer.tobytes()
            return copied if self._as_bytes else memoryview(copied)

    def clear(self) -> None:
        self._hits = self._misses = 0
        who = self._identity()
        for key in self._cache:
            if isinstance(key, tuple) and key[:1] == (who,):
                self._cache._remove(key)

    def info(self) -> CacheInfo:
        """Hits and misses of this function; maxsize and currsize of its Cache."""
        currsize = 0
        with suppress(*_OUT_OF_REACH):
            currsize = self._cache.currsize
        return CacheInfo(self._hits, self._misses, self._cache.maxsize, currsize)
