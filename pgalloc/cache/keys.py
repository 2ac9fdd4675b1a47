"""Keys: str, bytes, int, and tuples of these; and how they are written down in a snapshot.

csrc/binding/cache_keys.h writes them down in the same way.

Exactly these types, not their subclasses: hashing and comparing them runs no code of anybody's, so
it may be done under a lock, and what is restored equals what was saved. What else equals a key
(True, 1.0) is none: it is never looked up. Pure functions.
"""

from __future__ import annotations

from typing import TypeAlias, TypeGuard

from pgalloc.errors import SnapshotCorruptError

Key: TypeAlias = str | bytes | int | tuple["Key", ...]

_DEPTH_MAX = 32


def is_key(key: object) -> TypeGuard[Key]:
    """Whether there can be a value of this key. Runs no code of the key's."""
    kind = type(key)
    return kind is str or kind is int or kind is bytes or why_no_key(key) is None


def check_key(key: object) -> None:
    """Raises TypeError unless ``key`` can be one."""
    if not is_key(key):
        raise TypeError(why_no_key(key))


def check_tag(tag: object) -> None:
    """Raises TypeError unless ``tag`` can be one: what a key may be."""
    if not is_key(tag):
        raise TypeError(f"a tag is like a key, and {why_no_key(tag)}")


def why_no_key(key: object, depth: int = _DEPTH_MAX) -> str | None:
    """What is wrong with a key; None if nothing is."""
    kind = type(key)
    if kind is str or kind is int or kind is bytes:
        return None
    if kind is not tuple:
        return f"a key is a str, bytes, int or a tuple of these, not {kind.__name__}"
    if depth == 0:
        return "the tuples of a key are nested too deeply"
    for part in key:  # type: ignore[attr-defined]
        why_not = why_no_key(part, depth - 1)
        if why_not is not None:
            return why_not
    return None


def encode_key(key: Key) -> bytes:
    """A letter for the type, the length, the contents; for tuples the number of parts."""
    if isinstance(key, tuple):
        return b"t" + encode_length(len(key)) + b"".join(encode_key(part) for part in key)
    if isinstance(key, int):
        content = key.to_bytes(key.bit_length() // 8 + 1, "little", signed=True)
        return b"i" + encode_length(len(content)) + content
    if isinstance(key, str):
        content = key.encode("utf-8", "surrogatepass")
        return b"s" + encode_length(len(content)) + content
    return b"b" + encode_length(len(key)) + key


def encode_length(length: int) -> bytes:
    """A length as four bytes."""
    return length.to_bytes(4, "little")


class Decoder:
    """Reads what was encoded, and trusts none of it: SnapshotCorruptError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def at_end(self) -> bool:
        """Whether everything was read."""
        return self._at == len(self._data)

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count > len(self._data) - self._at:
            raise SnapshotCorruptError("a cache in the image ends early")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, size: int) -> int:
        """An unsigned number of ``size`` bytes."""
        return int.from_bytes(self.take(size), "little")

    def key(self, depth: int = _DEPTH_MAX) -> Key:
        """The next key."""
        kind = self.take(1)
        length = self.number(4)
        if kind == b"t":
            if depth == 0:
                raise SnapshotCorruptError("the tuples of a cache's key are nested too deeply")
            # Each part takes bytes: a length that promises too much ends with take().
            return tuple(self.key(depth - 1) for _ in range(length))
        content = self.take(length)
        if kind == b"i":
            return int.from_bytes(content, "little", signed=True)
        if kind == b"b":
            return content
        if kind == b"s":
            try:
                return content.decode("utf-8", "surrogatepass")
            except UnicodeDecodeError as error:
                raise SnapshotCorruptError("a cache's key is not UTF-8") from error
        raise SnapshotCorruptError(f"unknown kind of key in a cache: {kind!r}")
