"""Something to do once a module has been imported, whenever that is, without importing it."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]

_log = logging.getLogger("pgalloc")


class _Loader(Loader):
    """Another loader, and something to do after it. It is gone once the module is loaded."""

    def __init__(self, loader: Any, action: Action) -> None:
        self._loader = loader
        self._action = action

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _do(self._action, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Finder(MetaPathFinder):
    """Finds the modules that are waited for, as the other finders do."""

    def __init__(self) -> None:
        self.actions: dict[str, Action] = {}
        self._asking: set[str] = set()  # others may ask all finders in turn, this one included

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        action = self.actions.get(fullname)
        if action is None or fullname in self._asking:
            return None
        self._asking.add(fullname)
        try:
            for finder in sys.meta_path:
                spec = None if finder is self else finder.find_spec(fullname, path, target)
                if spec is not None:
                    if hasattr(spec.loader, "exec_module"):
                        spec.loader = _Loader(spec.loader, action)
                    return spec
        finally:
            self._asking.discard(fullname)
        return None


_finder = _Finder()


def after_import(name: str, action: Action) -> None:
    """Call ``action(module)`` when a module has been imported: at once if it has been."""
    _finder.actions[name] = action
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    if sys.modules.get(name) is not None:
        _do(action, importlib.import_module(name))  # waits if another thread is importing it


def _do(action: Action, module: ModuleType) -> None:
    """An import does not fail because of what is done after it."""
    try:
        action(module)
    except Exception:
        _log.warning("%s is not as expected", module.__name__, exc_info=True)
