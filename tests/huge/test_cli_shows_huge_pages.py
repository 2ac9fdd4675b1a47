"""``pgalloc top`` and ``pgalloc demo`` where there are huge pages."""

from __future__ import annotations

import json
import os
from pathlib import Path

from click.testing import CliRunner

import pgalloc
from huge.conftest import huge_bytes
from pgalloc import HUGE_PAGE_SIZE as HUGE
from pgalloc.cli.app import cli


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_top_shows_what_is_in_huge_pages() -> None:
    populate = pgalloc.AllocationMode.ALLOCATE_AND_WRITE_POPULATE
    with pgalloc.MemoryFile() as file, pgalloc.MemoryFile() as other:
        kept = [
            file.allocate(3 * HUGE, huge=True, mode=populate),
            other.allocate(HUGE, mode=populate),
        ]
        (seen,) = json.loads(run("top", os.getpid(), "--once", "--json"))["processes"]
        found = {one["inode"]: one["huge"] for one in seen["files"]}
        assert found[os.fstat(file.fileno()).st_ino] == 3 * HUGE
        assert found[os.fstat(other.fileno()).st_ino] == 0
        assert seen["huge"] == huge_bytes() == 3 * HUGE
        assert "6 MiB of it in huge pages" in run("top", os.getpid(), "--once")
        for pages in kept:
            pages.release()


def test_the_demos_map_shows_huge_pages(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(8):
        (tree / f"large{number}").write_bytes(os.urandom(2 * HUGE + 5))
        (tree / f"small{number}").write_bytes(os.urandom(5))
    page = tmp_path / "page.html"
    printed = run("demo", tree, "--html", page)
    assert "demo: OK" in printed
    assert "used, in huge pages 16 MiB" in printed  # half of them were evicted
    assert "in huge pages" in page.read_text()
    assert 'class="huge"' in page.read_text()
