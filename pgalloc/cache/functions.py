"""What a cached function is known by in the keys of its results: no two functions by the same.

A name holds in other processes, too, so that results in a snapshot are found again: module,
qualified name, and a digest of the code and the defaults, for a function that is found at that name
and is all there. What has more to it (a closure, a partial, an object) or is not found (a lambda, a
function that was redefined) is known by what no other process or function has.
"""

from __future__ import annotations

import hashlib
import os
import sys
from types import CodeType, EllipsisType, FunctionType, NoneType
from typing import Any

_MAIN = ("__main__", "__mp_main__")
_WRAPPERS_MAX = 32
_CODE = (
    *("argcount", "posonlyargcount", "kwonlyargcount", "flags", "name", "code", "exceptiontable"),
    *("consts", "names", "varnames", "cellvars"),
)


class Identity:
    """What the keys of one decorated function begin with."""

    def __init__(self, function: Any, name: str | None) -> None:
        self._function = function
        called = str(getattr(function, "__qualname__", type(function).__qualname__))
        self._own = f"{called}@{os.urandom(16).hex()}"
        self._known = name
        if name is None and not _is_all_there(function):
            self._known = self._own

    def __call__(self) -> str:
        """That name, or what it is known by in this process."""
        if self._known is not None:
            return self._known
        # Not while the function is being defined: its name is bound last.
        self._known = _name(self._function)
        return self._known or self._own


def _is_all_there(function: Any) -> bool:
    """Whether what a function does depends on its module, its code and its defaults only."""
    return (
        type(function) is FunctionType
        and not function.__closure__
        and not hasattr(function, "__wrapped__")
        and "<" not in function.__qualname__
    )


def _name(function: FunctionType) -> str | None:
    """A name of the function that is right in other processes; None without one."""
    try:
        module = sys.modules[function.__module__]
        home = _home(module)
        if home is None or function.__globals__ is not vars(module):
            return None
        found: Any = module
        for part in function.__qualname__.split("."):
            found = vars(found)[part]
        for _ in range(_WRAPPERS_MAX):
            if found is function:
                return f"{home}:{function.__qualname__}#{_digest(function)}"
            found = found.__wrapped__
    except Exception:  # there is no such name, or no digest
        pass
    return None


def _home(module: Any) -> str | None:
    """The name of a module; of the main program its file, for there are many programs."""
    name = str(module.__name__)
    if name not in _MAIN:
        return name
    spec = getattr(module, "__spec__", None)
    if spec is not None and spec.name not in _MAIN:
        return str(spec.name)
    file = getattr(module, "__file__", None)
    return str(file) if file is not None and os.path.isabs(file) else None


def _digest(function: FunctionType) -> str:
    keywords = tuple(sorted((function.__kwdefaults__ or {}).items()))
    described = _described((function.__code__, function.__defaults__, keywords))
    return hashlib.blake2b(described.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _described(value: Any) -> str:
    """Text that tells values apart, also in other processes. TypeError if there is none."""
    kind = type(value)
    if kind is CodeType:
        parts = (getattr(value, f"co_{name}") for name in _CODE)
        return f"code({','.join(map(_described, parts))})"
    if kind is tuple:
        return f"({','.join(map(_described, value))})"
    if kind is frozenset:
        return f"{{{','.join(sorted(map(_described, value)))}}}"
    if kind is int:
        return hex(value)
    if kind in (NoneType, EllipsisType, bool, float, complex, str, bytes):
        return repr(value)
    raise TypeError(kind.__name__)
