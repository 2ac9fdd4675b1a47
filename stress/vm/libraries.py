"""Which shared libraries a program or library needs, as the dynamic linker finds them: ldd(1)."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

# "libm.so.6 => /lib/.../libm.so.6 (0x...)" or, for the linker itself, "/lib64/ld-... (0x...)".
_FOUND = re.compile(r"^\s*(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_MISSING = re.compile(r"^\s*(\S+) => not found$", re.MULTILINE)


def needed_by(files: Iterable[Path]) -> list[Path]:
    """Absolute paths, under the names that the linker uses; directly and indirectly needed ones."""
    found: set[str] = set()
    for file in files:
        # Nothing is inherited that would change what the linker finds. For a statically linked
        # file ldd fails, and nothing is found.
        done = subprocess.run(
            ["ldd", str(file)], capture_output=True, text=True, env={"LC_ALL": "C", "PATH": "/bin"}
        )
        missing = _MISSING.findall(done.stdout)
        if missing:
            raise FileNotFoundError(f"{file} needs {', '.join(missing)}")
        found.update(_FOUND.findall(done.stdout))
    return [Path(name) for name in sorted(found)]
