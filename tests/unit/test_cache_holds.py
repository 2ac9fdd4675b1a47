"""What is held of a Cache, by readers and forked children, and what becomes of it afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from pgalloc import Cache, testing


def test_values_that_a_reader_held_for_a_moment_are_forgotten(tmp_path: Path) -> None:
    """Their numbers, and their pages, are used again."""
    path = tmp_path / "socket"
    with Cache("64K") as cache, cache.serve(path), Cache.connect(path) as reader:
        for number in range(2000):  # more than the cache has entries
            cache["key"] = b"%04d" % number
            view = reader["key"]
            cache["key"] = b"next"
            assert view == b"%04d" % number
            view.release()
        assert sum(s.refs > 0 for s in cache.file.segments()) < 10


def test_a_slot_that_a_forked_child_sees_is_not_used_again() -> None:
    with Cache() as cache:
        for key in range(200):
            cache[key] = b"%03d" % key * 50
        view = cache[100]
        before = view.tobytes()
        changed, told = os.pipe()
        child = os.fork()
        if child == 0:
            os.read(changed, 1)
            os._exit(0 if view == before else 1)
        view.release()
        del view
        for key in range(0, 200, 2):
            del cache[key]
        for key in range(1000, 2000):
            cache[key] = b"x" * 150
        os.write(told, b"1")
        assert os.waitpid(child, 0)[1] == 0
        testing.verify_cache(cache)
        os.close(changed)
        os.close(told)


def test_a_fork_after_a_reader_has_left_while_it_held_a_value(tmp_path: Path) -> None:
    """The child ends its copy of that reader's session without the owner's lock."""
    with Cache() as cache, cache.serve(tmp_path / "socket"):
        cache["key"] = b"value"
        for _ in range(10):
            with Cache.connect(tmp_path / "socket") as reader:
                view = reader["key"]
                child = os.fork()
                if child == 0:
                    os._exit(0)
                assert os.waitpid(child, 0)[1] == 0
                view.release()
