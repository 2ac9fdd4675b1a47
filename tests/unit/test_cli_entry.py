"""The entry point: help, version, and what happens without the extra ``cli``."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
from pgalloc.cli import main
sys.argv = ["pgalloc", "doctor"]
main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("module", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(module: str) -> None:
    result = run("-c", WITHOUT.format(module=module))
    assert result.returncode == 2
    assert "pip install 'pgalloc[cli]'" in result.stderr
    assert "Traceback" not in result.stderr


def test_importing_pgalloc_needs_no_extra() -> None:
    look = "import sys, pgalloc, pgalloc.cli, pgalloc.pressure; print('click' in sys.modules)"
    assert run("-c", look).stdout.strip() == "False"


def test_help_lists_the_commands() -> None:
    result = run("-m", "pgalloc", "--help")
    assert result.returncode == 0
    assert "demo" in result.stdout
    assert "doctor" in result.stdout


def test_a_command_that_does_not_exist() -> None:
    result = run("-m", "pgalloc", "destroy")
    assert result.returncode == 2
    assert "No such command" in result.stderr
