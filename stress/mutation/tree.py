"""A copy of the project with mutants in its csrc, and how it is built and run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from mutation.mutant import Mutant, weave

ROOT = Path(__file__).parents[2]
_HEADER = Path(__file__).with_name("mutants.h")
_SOURCES = (".py", ".cc", ".h", ".toml")
_FLAGS = f"-O1 -DNDEBUG -w -include {_HEADER}"


class BuildError(Exception):
    """The mutants of some lines do not compile."""

    def __init__(self, places: set[tuple[str, int]], log: str) -> None:
        super().__init__(log)
        self.places = places  # files below csrc, lines


def digest(*parts: str) -> str:
    """Of all sources in some folders of the project."""
    sums = hashlib.sha256()
    for part in parts:
        for path in sorted((ROOT / part).rglob("*")):
            if path.suffix in _SOURCES:
                sums.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode())
                sums.update(path.read_bytes())
    return sums.hexdigest()


class Tree:
    """The copy, in a folder with what is made of it."""

    def __init__(self, work: Path, *, with_python: bool) -> None:
        self.work = work
        self.path = work / "tree"
        self.native_tests = self.path / "build/native_tests"
        self._with_python = with_python

    def copy(self) -> None:
        """Everything that git knows but csrc; what did not change keeps its time."""
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            check=True,
        ).stdout.decode()
        names = {name for name in listed.split("\0") if name and (ROOT / name).is_file()}
        for name in names:
            if not name.startswith("csrc/"):
                _write(self.path / name, (ROOT / name).read_bytes())
        # What an earlier copy had is no part of the project any more.
        for folder in ("pgalloc", "tests"):
            for path in (self.path / folder).rglob("*.*"):
                gone = path.suffix in _SOURCES and str(path.relative_to(self.path)) not in names
                if gone and path.is_file():
                    path.unlink()

    def mutate(self, mutants: dict[int, Mutant]) -> None:
        """Write csrc with the mutants, by their numbers."""
        csrc = ROOT / "csrc"
        files = {path.relative_to(csrc) for path in csrc.rglob("*") if path.is_file()}
        for name in files:
            here = {n: mutant for n, mutant in mutants.items() if mutant.file == str(name)}
            _write(self.path / "csrc" / name, weave((csrc / name).read_bytes(), here))
        for path in (self.path / "csrc").rglob("*"):
            if path.is_file() and path.relative_to(self.path / "csrc") not in files:
                path.unlink()

    def build(self) -> None:
        """Compile, and put the results where tests look. BuildError says which lines cannot be."""
        built = self.work / "build"
        targets = ["native_tests", *(["_core"] if self._with_python else [])]
        if not (built / "build.ninja").exists():
            self._configure(built)
        command = ["cmake", "--build", str(built), "--target", *targets, "--", "-k", "0"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = re.findall(r"tree/csrc/(\S+?):(\d+):\d+: error", done.stdout)
            log = done.stdout + done.stderr
            raise BuildError({(file, int(line)) for file, line in said}, log)
        for library in built.glob("_core*.so"):
            shutil.copy2(library, self.path / "pgalloc" / library.name)
        self.native_tests.parent.mkdir(exist_ok=True)
        shutil.copy2(built / "native_tests", self.native_tests)

    def _configure(self, built: Path) -> None:
        options = [f"-DPGALLOC_PYTHON={'ON' if self._with_python else 'OFF'}"]
        if self._with_python:
            import pybind11

            options.append(f"-Dpybind11_DIR={pybind11.get_cmake_dir()}")
        command = [
            *("cmake", "-S", str(self.path), "-B", str(built), "-G", "Ninja", *options),
            *("-DPGALLOC_NATIVE_TESTS=ON", "-DCMAKE_BUILD_TYPE=Mutants"),
            *("-DCMAKE_INTERPROCEDURAL_OPTIMIZATION=OFF", f"-DCMAKE_CXX_FLAGS={_FLAGS}"),
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def environment(self, number: int | None, reached: Path | None = None) -> dict[str, str]:
        """For a program of the tree, in which one mutant is chosen, or none."""
        extra = {"PYTHONPATH": str(self.path), "PYTHONDONTWRITEBYTECODE": "1"}
        if number is not None:
            extra["PGALLOC_MUTANT"] = str(number)
        if reached is not None:
            extra["PGALLOC_MUTANTS_REACHED"] = str(reached)
        return os.environ | extra


def _write(path: Path, contents: bytes) -> None:
    if path.exists() and path.read_bytes() == contents:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(contents)
