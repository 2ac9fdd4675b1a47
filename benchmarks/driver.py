"""The C++ driver of the core figures: found, or built, and run."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from benchmarks.measure import Sample

_ROOT = Path(__file__).resolve().parent.parent
_BUILD = _ROOT / "build" / "release"


class DriverError(Exception):
    """The driver cannot be had."""


def find_or_build(path: str | None) -> Path:
    """The driver at ``path``, or the one below build/, built if it is not there or not current."""
    if path is not None:
        if not Path(path).is_file():
            raise DriverError(f"there is no driver at {path}")
        return Path(path).resolve()
    cmake = shutil.which("cmake")
    if cmake is None:
        raise DriverError("cmake is not there to build the driver: install it, or use --driver")
    _call(cmake, "-S", str(_ROOT), "-B", str(_BUILD), *_OPTIONS)
    _call(cmake, "--build", str(_BUILD), "--target", "core_driver", "--parallel")
    return _BUILD / "core_driver"


_OPTIONS = ("-DCMAKE_BUILD_TYPE=Release", "-DPGALLOC_PYTHON=OFF", "-DPGALLOC_DRIVERS=ON")


def _call(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DriverError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")


def run(driver: Path, run_name: str, round_number: int) -> list[Sample]:
    """Measure once what the driver calls ``run_name``."""
    command = [str(driver), "--round", str(round_number), run_name]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [_sample(json.loads(line)) for line in done.stdout.splitlines()]


def _sample(line: dict[str, str | int | float]) -> Sample:
    return Sample(
        workload=str(line["workload"]),
        implementation=str(line["implementation"]),
        ops=int(line["ops"]),
        seconds=float(line["seconds"]),
        bytes=int(line["bytes"]),
    )
