"""What can be neither copied nor pickled, and says what to do instead."""

from __future__ import annotations

from typing import Any, NoReturn


class Uncopyable:
    """A base of what owns something that is there once: a file, a thread, references on pages.

    By default Python would copy the attributes, and the end of the copy would close what the
    original uses.
    """

    __slots__ = ()

    _instead_of_copying = "make a new one"
    _instead_of_pickling = "it belongs to this process"

    def __copy__(self) -> NoReturn:
        raise TypeError(f"{_named(self)} cannot be copied: {self._instead_of_copying}")

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__copy__()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(f"{_named(self)} cannot be pickled: {self._instead_of_pickling}")


def _named(thing: object) -> str:
    name = type(thing).__name__
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
