"""The picklers that send pages: each is told how, and all others pickle arrays by value.

They are multiprocessing's, which concurrent.futures and torch.multiprocessing use, too, and those
of libraries that need not be there. A library's pickler copies its table of reducers for each use,
and a reducer is not told which pickler it works for; so there is nothing to look up at the time of
use, and a library that is imported after pgalloc has to be told then: see :mod:`.imports`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

from pgalloc.sharing.imports import after_import

Reducer = Callable[[Any], Any]

_kinds: dict[type[Any], Reducer] = {}
_tables: list[Callable[[type[Any], Reducer], None]] = []  # the picklers' own register()


def register(kind: type[Any], how: Reducer) -> None:
    """Have objects of exactly this type travel as ``how(object)`` says."""
    _kinds[kind] = how
    for table in list(_tables):
        table(kind, how)


def _tell(table: Callable[[type[Any], Reducer], None]) -> None:
    _tables.append(table)
    for kind, how in list(_kinds.items()):
        table(kind, how)


def _tell_forking_pickler(pickler: Any) -> None:
    """A pickler like multiprocessing's: numpy's own arrays on pages travel without a copy, too.

    Those are of a type that has always been pickled, by protocols that its reducer would have to
    know. ``reducer_override`` sees the object, and can leave it to the pickler. numpy need not be
    there: without it there are no arrays.
    """
    _tell(pickler.register)
    before = getattr(pickler, "reducer_override", None)

    def reducer_override(self: Any, obj: Any) -> Any:
        numpy = sys.modules.get("numpy")
        if type(obj) is getattr(numpy, "ndarray", None) and obj.base is not None:
            from pgalloc.sharing import arrays

            reduced = arrays.reduce_numpys_own(obj)
            if reduced is not NotImplemented:
                return reduced
        return NotImplemented if before is None else before(self, obj)

    pickler.reducer_override = reducer_override


def _tell_multiprocess(module: ModuleType) -> None:
    _tell_forking_pickler(module.ForkingPickler)


def _tell_loky(module: ModuleType) -> None:
    _tell(module.register)


_tell_forking_pickler(ForkingPickler)
after_import("multiprocess.reduction", _tell_multiprocess)
after_import("loky.backend.reduction", _tell_loky)
after_import("joblib.externals.loky.backend.reduction", _tell_loky)
