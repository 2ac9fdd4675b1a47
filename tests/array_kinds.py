"""Arrays of every kind, for tests: how they lie, what they hold, and where."""

from __future__ import annotations

from typing import Any

import numpy as np
from conftest import PAGE

from pgalloc import MemoryFile

RECORD = [("x", "i4"), ("y", "S3"), ("z", "f8", (2,))]


def in_pages(mf: MemoryFile) -> dict[str, Any]:
    """Arrays that lie in pages, by what is special about them."""
    a = mf.array((4, 3))
    a[:] = np.arange(12).reshape(4, 3)
    large = mf.array(3 * PAGE, np.uint8)
    large[:] = np.arange(3 * PAGE) % 251
    pages = mf.allocate(2 * PAGE)
    pages.view()[:] = bytes(range(256)) * (2 * PAGE // 256)
    records = mf.array(5, RECORD)
    records["x"] = range(5)
    readonly = a.view()
    readonly.flags.writeable = False
    return {
        "whole": a,
        "0-d": mf.array(()),
        "no elements": mf.array((0, 3)),
        "no elements, at the end": a[4:],
        "no elements, at the end of the pages": large[3 * PAGE :][::-1],
        "transposed": a.T,
        "backwards": a[::-1, ::-1],
        "strided": large[7 :: PAGE + 3],
        "part": large[PAGE + 5 : PAGE + 9],
        "across pages": large[PAGE - 2 : PAGE + 2],
        "view of a view": a[1:][:, 1:][::-1],
        "read-only": readonly,
        "broadcast": np.broadcast_to(a, (2, 4, 3), subok=True),
        "Fortran": mf.array((4, 3), order="F"),
        "records": records,
        "field": records["z"],
        "text": mf.array(3, "U5"),
        "bytes": mf.array(3, "S"),
        "complex": mf.array(3, complex).real,
        "dates": mf.array(3, "M8[s]"),
        "big-endian": mf.array(3, ">i2"),
        "frombuffer": np.frombuffer(pages, np.uint8),
        "frombuffer of a view": np.frombuffer(pages.view()[PAGE:], "i4")[3:9],
        "read-only frombuffer": np.frombuffer(pages.view(readonly=True), "i8"),
        "cast": np.asarray(pages.view().cast("d")),
        "asarray": np.asarray(a),
        "asarray of a view": np.asarray(a[1:, ::2]),
        "numpy's broadcast": np.broadcast_to(a, (2, 4, 3)),
        "windows": np.lib.stride_tricks.sliding_window_view(a, (2, 2)),
    }


def elsewhere() -> dict[str, Any]:
    """Arrays in ordinary memory."""
    a = np.arange(12.0).reshape(4, 3)
    return {
        "ordinary": a,
        "ordinary view": a[1:, ::-1],
        "ordinary scalar": a[0, 0],
        "objects": np.array([1, "two", None], object),
        "masked": np.ma.masked_greater(a, 5),
        "recarray": np.zeros(2, RECORD).view(np.recarray),
    }


def same(one: Any, other: Any) -> bool:
    """Equal in type of the elements, shape and contents, text and records included."""
    return bool(
        one.dtype == other.dtype
        and one.shape == other.shape
        and repr(np.asarray(one).tolist()) == repr(np.asarray(other).tolist())
    )
