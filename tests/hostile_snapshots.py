"""Cases of bad input for snapshots: targets, sources, hooks, options, and ranges to adopt."""

# ruff: noqa: E731
# mypy: disable-error-code="misc, assignment"

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conftest import PAGE
from hostile_cases import Case, enter
from hostile_zoo import (
    BOOL,
    IMAGE,
    SECONDS,
    allocated,
    either,
    integer,
    none,
    nothing,
    path,
)
from image_parts import zstd

import pgalloc
from pgalloc import Allocation, FileRange, MemoryFile

RANGE = FileRange(0, 4 * PAGE)


def image() -> Path:
    """An image in the folder that the test runs in."""
    file = Path("image")
    if not file.exists():
        file.write_bytes(IMAGE)
    return file


def level(value: Any) -> bool:
    low, high = zstd().CompressionParameter.compression_level.bounds()
    return value is None or integer(low, high + 1)(value)


def hook_name(value: Any) -> bool:
    """All but the one that is taken."""
    if not isinstance(value, str) or value == "4096" or "\0" in value or "\udcff" in value:
        return False
    return 0 < len(value) < 256


def cases_of_snapshots() -> Iterator[Case]:
    """Saving, restoring, looking at images, and taking pages over."""
    save = "MemoryFile.save"
    yield Case(save, "target", lambda h, v: h.mf.save(v), lambda v: path(v) and v is not None)
    keywords: dict[str, Any] = {
        "exclude_committed_zero_pages": BOOL,
        "compression": none,
        "level": none,
    }
    for keyword, accepts in keywords.items():
        call = lambda h, v, k=keyword: h.mf.save(io.BytesIO(), **{k: v})
        yield Case(save, keyword, call, accepts)
    call = lambda h, v: h.mf.save(io.BytesIO(), compression="zstd", level=v)
    yield Case(save, "level of zstd", call, level)

    restore = "MemoryFile.restore"
    yield Case(restore, "source", lambda h, v: MemoryFile.restore(v), nothing)
    keywords = {"background": BOOL, "hooks": none, "restore_id": lambda v: v == ""}
    for keyword, accepts in keywords.items():
        call = lambda h, v, k=keyword: MemoryFile.restore(image(), **{k: v})
        yield Case(restore, keyword, call, accepts)
    call = lambda h, v: MemoryFile.restore(image(), hooks={"4096": v})
    yield Case(restore, "hook", call, callable)

    hook = "MemoryFile.save_hook"
    yield Case(hook, "name", lambda h, v: h.mf.save_hook(v, save=bytes), hook_name)
    yield Case(hook, "save", lambda h, v: h.mf.save_hook("new", save=v), callable)
    call = lambda h, v: h.mf.save_hook("new", save=bytes, restore=v)
    yield Case(hook, "restore", call, either(none, callable))
    call = lambda h, v: h.mf.remove_save_hook(v)
    yield Case("MemoryFile.remove_save_hook", "name", call, lambda v: v == "4096")

    yield Case("MemoryFile.adopt_range", "range", lambda h, v: h.restored.adopt_range(v), allocated)
    adopt = "Allocation.adopt"
    yield Case(adopt, "range", lambda h, v: Allocation.adopt(h.restored, v), allocated)
    yield Case(adopt, "memory_file", lambda h, v: Allocation.adopt(v, RANGE), nothing)
    yield Case("MemoryFile.wait_loaded", "timeout", lambda h, v: h.restored.wait_loaded(v), SECONDS)

    for look in (pgalloc.inspect_image, pgalloc.verify_image):
        yield Case(look.__name__, "source", lambda h, v, f=look: f(v), nothing)
    call = lambda h, v: pgalloc.verify_image(image(), progress=v)
    yield Case("verify_image", "progress", call, either(none, callable))
    call = lambda h, v: enter(pgalloc.testing.without_loaders(*[v]))
    yield Case("testing.without_loaders", "surplus", call, nothing)
