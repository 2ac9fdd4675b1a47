"""What lies in the machine: the Python that runs this, pgalloc as imported here, more folders.

Python and its libraries keep their paths, so that nothing has to be told where they are. Packages
go to ``SITE``, folders that were asked for below ``HOME``.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from vm.libraries import needed_by
from vm.newc import Archive

SITE = "/site"
HOME = "/home"

# Of the standard library: what no test of memory limits imports, and what is large.
_WITHOUT = {
    "ensurepip",
    "idlelib",
    "lib2to3",
    "pydoc_data",
    "site-packages",
    "test",
    "tests",
    "tkinter",
    "turtledemo",
}


def python_files() -> Iterator[tuple[str, Path]]:
    """(path in the machine, path here) of the interpreter and its standard library."""
    program = Path(os.path.realpath(sys.executable))
    yield str(program), program
    for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
        # Inside a virtual environment too, these are the paths of the Python that it was made from.
        yield from _below(Path(folder), folder)


def package_files(name: str) -> Iterator[tuple[str, Path]]:
    """A top-level package or module as it is imported here; with the libraries of its wheel."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise ModuleNotFoundError(f"no module named {name!r}")
    if not spec.submodule_search_locations:
        assert spec.origin is not None
        yield f"{SITE}/{os.path.basename(spec.origin)}", Path(spec.origin)
        return
    for location in spec.submodule_search_locations:
        yield from _below(Path(location), f"{SITE}/{name}", whole=True)
        beside = Path(location).with_name(f"{name}.libs")
        if beside.is_dir():
            yield from _below(beside, f"{SITE}/{beside.name}")


def folder_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """A folder under its own name below ``HOME``."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is no folder")
    yield from _below(folder, f"{HOME}/{folder.resolve().name}", whole=True)


def write(archive: Archive, files: Iterable[tuple[str, Path]]) -> None:
    """Everything, and the shared libraries that it needs."""
    binaries = []
    for name, source in files:
        archive.add_file(name, source)
        if ".so" in source.suffixes or os.path.realpath(sys.executable) == name:
            binaries.append(source)
    for library in needed_by(binaries):
        archive.add_file(str(library), library)


def _below(folder: Path, name: str, *, whole: bool = False) -> Iterator[tuple[str, Path]]:
    """Regular files, links to files followed; ``whole`` leaves out build products only."""
    without = {".git"} if whole else _WITHOUT
    for top, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in without and not f.startswith("config-")]
        for file in files:
            source = Path(top, file)
            if source.suffix in (".a", ".h", ".cc") or not source.is_file() or _stale(source):
                continue
            yield os.path.join(name, source.relative_to(folder)), source


def _stale(source: Path) -> bool:
    """Byte code of another Python, or optimized."""
    tag = sys.implementation.cache_tag
    return source.suffix == ".pyc" and not source.name.endswith(f".{tag}.pyc")
