"""What the owners of pages store in an image, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pgalloc.errors import OptionError

SaveHook = Callable[[], bytes]
"""Returns what the owner needs to find its pages again: any bytes-like object."""

RestoreHook = Callable[[Any, bytes], Any]
"""Called with the restored MemoryFile and what the hook's ``save`` returned."""

# As the image format limits them.
_NAME_LENGTH_MAX = 255
_COUNT_MAX = 65536


class _Hook(NamedTuple):
    save: SaveHook
    restore: RestoreHook | None


class Hooks:
    """The hooks of one file, in the order they came."""

    def __init__(self) -> None:
        self._hooks: dict[str, _Hook] = {}

    def add(self, name: str, save: SaveHook, restore: RestoreHook | None) -> None:
        """Keep a hook. Raises OptionError or TypeError for what cannot be one."""
        if not isinstance(name, str):
            raise TypeError(f"name must be a str, not {type(name).__name__}")
        if not callable(save) or not (restore is None or callable(restore)):
            raise TypeError("save and restore must be callable")
        try:
            length = len(name.encode())
        except UnicodeEncodeError:
            raise OptionError(f"{name!r} cannot be stored as UTF-8") from None
        if not 0 < length <= _NAME_LENGTH_MAX or "\0" in name:
            raise OptionError(f"a hook's name has 1 to {_NAME_LENGTH_MAX} bytes, none of them NUL")
        if name in self._hooks:
            raise OptionError(f"there is a hook {name!r} already")
        if len(self._hooks) == _COUNT_MAX:
            raise OptionError(f"a file has at most {_COUNT_MAX} hooks")
        self._hooks[name] = _Hook(save, restore)

    def remove(self, name: str) -> None:
        """Forget a hook."""
        if name not in self._hooks:
            raise OptionError(f"there is no hook {name!r}")
        del self._hooks[name]

    def restorers(self) -> dict[str, RestoreHook]:
        """The hooks that know how to restore."""
        return {name: hook.restore for name, hook in self._hooks.items() if hook.restore}

    def collect(self) -> list[tuple[str, bytes]]:
        """Call them all: what goes into an image."""
        payloads = []
        for name, hook in list(self._hooks.items()):
            payload = hook.save()
            try:
                payloads.append((name, bytes(memoryview(payload))))
            except TypeError:
                raise TypeError(
                    f"the hook {name!r} returned {type(payload).__name__} instead of bytes"
                ) from None
        return payloads
