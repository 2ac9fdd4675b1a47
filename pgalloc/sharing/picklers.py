"""The picklers that send pages: each is told how, and all others pickle arrays by value.

They are multiprocessing's, which concurrent.futures and torch.multiprocessing use, too, and those
of joblib, loky and multiprocess, which need not be there. These ask nothing that they have in
common with pgalloc while they pickle: their classes and tables have to be changed, and if they are
imported after pgalloc, then: see :mod:`.imports`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

from pgalloc.sharing.imports import after_import
from pgalloc.sharing.pickles import withdrawing

Reducer = Callable[[Any], Any]

_kinds: dict[type[Any], Reducer] = {}
_tables: list[Callable[[type[Any], Reducer], None]] = []  # loky's register()


def register(kind: type[Any], how: Reducer) -> None:
    """Have objects of exactly this type travel as ``how(object)`` says."""
    _kinds[kind] = how
    for table in list(_tables):
        table(kind, how)


def _tell(table: Callable[[type[Any], Reducer], None]) -> None:
    _tables.append(table)
    for kind, how in list(_kinds.items()):
        table(kind, how)


def _tell_loky(module: ModuleType) -> None:
    """Its picklers have a reducer_override of their own, in classes that it makes when it likes.

    All that it pickles goes through one function.
    """
    _tell(module.register)
    dump: Any = module.dump
    module.dump = withdrawing(dump)  # type: ignore[attr-defined]


def _override(pickler: Any) -> None:
    """Have all picklers of this class send pages, numpy's own arrays on pages included.

    Those are of a type that has always been pickled, by protocols that a reducer in a table would
    have to know. ``reducer_override`` sees the object, and can leave it to the pickler. numpy need
    not be there: without it there are no arrays.
    """
    before = getattr(pickler, "reducer_override", None)

    def reducer_override(self: Any, obj: Any) -> Any:
        kind = type(obj)
        if kind in _kinds:
            return _kinds[kind](obj)
        if kind is getattr(sys.modules.get("numpy"), "ndarray", None) and obj.base is not None:
            from pgalloc.sharing import arrays

            reduced = arrays.reduce_numpys_own(obj)
            if reduced is not NotImplemented:
                return reduced
        return NotImplemented if before is None else before(self, obj)

    pickler.reducer_override = reducer_override
    pickler.dump = withdrawing(pickler.dump)


_override(ForkingPickler)
after_import("multiprocess.reduction", lambda module: _override(module.ForkingPickler))
after_import("joblib.pool", lambda module: _override(module.CustomizablePickler))
for _loky in ("loky", "joblib.externals.loky"):
    after_import(f"{_loky}.backend.reduction", _tell_loky)
