"""What stands for pages that could not be attached when they were received.

Who unpickles is multiprocessing: a worker of a Pool that fails there dies, and a new one takes the
next task, while the caller waits for ever. So unpickling does not fail. The first use does, in the
function that was called, and its exception goes the way of all exceptions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from pgalloc.errors import Error, SharingError
from pgalloc.raised import is_ours


def attach(make: Callable[..., Any], *arguments: Any) -> Any:
    """Called when something that was sent is unpickled: ``make(*arguments)``, or an Unattached.

    What a signal handler raises meanwhile comes out: it ends what its caller waits for.
    """
    try:
        return make(*arguments)
    except (Error, OSError, MemoryError) as error:
        if not is_ours(error):
            raise
        if isinstance(error, SharingError):
            return Unattached(type(error), str(error), error)
        text = f"pages that were sent cannot be attached here: {type(error).__name__}: {error}"
        return Unattached(SharingError, text, error)


class Unattached:
    """Pages that could not be attached. It can be kept and sent on; its use raises SharingError."""

    __slots__ = ("_cause", "_kind", "_text")

    def __init__(
        self, kind: type[SharingError], text: str, cause: BaseException | None = None
    ) -> None:
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_text", text)
        # Without its traceback, which would keep all that was at hand there.
        object.__setattr__(self, "_cause", cause and cause.with_traceback(None))

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # asked for by what wants to know what this is
        self._use()

    def _use(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self._kind(self._text) from self._cause

    def __reduce__(self) -> Any:
        return Unattached, (self._kind, self._text)

    def __repr__(self) -> str:
        return f"<Unattached: {self._text}>"

    __hash__ = object.__hash__


_OPERATORS = """
    add and divmod floordiv lshift matmul mod mul or pow rshift sub truediv xor
"""
_OTHERS = """
    array array_function array_ufunc bool buffer bytes call complex contains delattr delitem enter
    eq exit float ge getitem gt index int iter le len lt ne next reversed setattr setitem
    abs ceil floor invert neg pos round trunc
"""
_USES = [prefix + name for name in _OPERATORS.split() for prefix in ("", "r", "i")]
for _name in _USES + _OTHERS.split():
    setattr(Unattached, f"__{_name}__", Unattached._use)
