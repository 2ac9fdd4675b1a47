"""``pgalloc demo oom``: both halves as promised, and what must make it fail."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from memory_groups import in_a_group, may_make_groups

from pgalloc._processes.memory_group import MemoryGroup, NoPlaceError, open_place
from pgalloc.cli.app import cli
from pgalloc.cli.oom import command as oom_command
from pgalloc.cli.oom.command import judge
from pgalloc.cli.oom.half import Half, State, run_half
from pgalloc.cli.oom.work import Progress, Work, Worker, WorkError, find_work
from pgalloc.pressure import find_memory_cgroup

MIB = 1 << 20
LIMIT = 64 * MIB


def run_oom(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["demo", "oom", *map(str, arguments)])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """8 MiB in files from 3 bytes to 2 MiB."""
    top = tmp_path / "tree"
    (top / "below").mkdir(parents=True)
    for number in range(7):
        for part, size in (("a", 3 + number), ("below/b", (16 << 10) << number)):
            (top / f"{part}{number}").write_bytes(os.urandom(size))
    (top / "empty").touch()
    (top / "large").write_bytes(bytes(9 * MIB))
    return top


def small_work(top: Path, nbytes: int = 2 * MIB) -> Work:
    return find_work(str(top / "below"), nbytes=nbytes, size_max=MIB)


# --- the whole -----------------------------------------------------------------------------------


@in_a_group
def test_the_dict_is_killed_and_the_cache_finishes(tree: Path) -> None:
    result = run_oom(tree, "--limit", "64M", "--times", "3")
    assert result.exit_code == 0, result.output
    assert result.output.rstrip().endswith("demo oom: OK: the dict was killed, the Cache finished")
    for word in ("KILLED by the kernel", "finished", "limit", "64 MiB", "hits", "discards"):
        assert word in result.output


@in_a_group
@pytest.mark.parametrize(
    ("kinds", "wrong"), [(("dict", "dict"), 1), (("cache", "cache"), 0)], ids=["dicts", "caches"]
)
def test_any_other_end_is_a_failure(
    tree: Path, monkeypatch: pytest.MonkeyPatch, kinds: tuple[str, str], wrong: int
) -> None:
    monkeypatch.setattr(oom_command, "KINDS", kinds)
    result = run_oom(tree, "--limit", "64M", "--times", "2")
    assert result.exit_code == 1, result.output
    assert result.output.rstrip().endswith("demo oom: FAILED: see above")
    assert f"the {kinds[wrong]} half: " in result.output
    assert result.output.count(" half: ") == 1


@in_a_group
def test_no_group_is_left_behind(tree: Path) -> None:
    group = find_memory_cgroup()
    assert group is not None
    run_oom(tree, "--limit", "64M", "--times", "2", "--timeout", "1")
    assert list(group.mount_point.rglob(f"pgalloc-*-{os.getpid()}")) == []


def test_where_no_group_can_be_made_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def refused() -> Iterator[None]:
        raise NoPlaceError("/sys/fs/cgroup: Read-only file system")
        yield

    def none(limit_max: int) -> None:
        raise NoPlaceError("no limit")

    monkeypatch.setattr(oom_command, "open_place", refused)
    monkeypatch.setattr(oom_command, "borrow_group", none)
    result = run_oom()
    assert result.exit_code == 2
    for words in ("Read-only file system", "no limit", "docker run --rm -m 256m", "systemd-run"):
        assert words in result.stderr


@in_a_group
def test_a_group_that_is_here_already_will_do(tree: Path) -> None:
    """As in a container: nothing can be made, and the command itself is under the limit."""
    program = f"""
        import contextlib
        from pgalloc.cli.app import cli
        from pgalloc._processes.memory_group import NoPlaceError
        from pgalloc.cli.oom import command

        @contextlib.contextmanager
        def refused():
            raise NoPlaceError("as in a container")
            yield

        command.open_place = refused
        cli(["demo", "oom", {str(tree)!r}, "--times", "2"])
    """
    with open_place() as place, place.make("pgalloc-test", 2 * LIMIT) as group:
        command = group.command([sys.executable, "-c", textwrap.dedent(program)])
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        assert group.oom_kills == 1
    assert "the memory cgroup that is here, 128 MiB" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--limit", "1M"], "must be at least 64 MiB"),
        (["--times", "1"], "times"),
        (["/no/such/folder"], "cannot look at /no/such/folder"),
    ],
)
def test_bad_arguments_are_told(arguments: list[str], reason: str) -> None:
    if arguments[0].startswith("/") and not may_make_groups():
        pytest.skip("the groups come first")
    result = run_oom(*arguments)
    assert result.exit_code == 2
    assert reason in result.stderr


def test_the_demo_itself_still_takes_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "oom").mkdir()
    (tmp_path / "oom" / "file").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["demo", "./oom"])
    assert result.exit_code == 0, result.output
    assert "1 file" in result.output
    help_text = CliRunner().invoke(cli, ["demo", "oom", "--help"]).output
    assert help_text.startswith("Usage: cli demo oom [OPTIONS] [PATH]")


# --- the work ------------------------------------------------------------------------------------


def test_values_are_files_again_and_again(tree: Path) -> None:
    work = find_work(str(tree), nbytes=20 * MIB, size_max=MIB)
    assert work.nbytes >= 20 * MIB
    assert work.nbytes - work.nbytes // work.rounds < 20 * MIB
    assert work.values == len(work.files) * work.rounds
    names = {os.path.relpath(file.path, tree) for file in work.files}
    assert names == {f"a{n}" for n in range(7)} | {f"below/b{n}" for n in range(7)}
    for file in work.files:
        assert file.digest == hashlib.sha256(Path(file.path).read_bytes()).hexdigest()


def test_the_work_survives_a_file(tree: Path, tmp_path: Path) -> None:
    work = small_work(tree)
    work.save(tmp_path / "work")
    assert Work.load(tmp_path / "work") == work


def test_too_little_data_is_told(tree: Path) -> None:
    with pytest.raises(WorkError, match="not enough readable data"):
        find_work(str(tree / "empty"), nbytes=MIB, size_max=MIB)
    with pytest.raises(WorkError, match="not enough readable data"):
        find_work(str(tree / "a0"), nbytes=64 * MIB, size_max=MIB)


def test_a_worker_counts_what_it_does(tree: Path) -> None:
    work = small_work(tree)
    cache: dict[object, bytes] = {}
    seen: list[Progress] = []
    Worker(work, cache, lambda: 7, lambda p: seen.append(dataclasses.replace(p))).run()
    assert len(cache) == work.values
    last = seen[-1]
    assert last == Progress(work.values, work.nbytes, work.values, work.values, 7, 0, True)


def test_a_wrong_value_is_noticed_wherever_it_comes_from(tree: Path) -> None:
    class Forgetful(dict[object, bytes]):
        def get(self, key: object, default: object = None) -> bytes | None:  # type: ignore[override]
            value = super().get(key)
            return value and bytes([value[0] ^ 1]) + value[1:]

    seen: list[Progress] = []
    Worker(small_work(tree), Forgetful(), lambda: 0, seen.append).run()
    assert seen[-1].wrong == seen[-1].hits
    assert not seen[-1].done

    (tree / "below" / "b0").write_bytes(b"old")
    work = small_work(tree)
    (tree / "below" / "b0").write_bytes(b"new")
    Worker(work, {}, lambda: 0, seen.append).run()
    assert seen[-1].wrong >= work.rounds
    assert not seen[-1].done


# --- one half ------------------------------------------------------------------------------------


class NoGroup(MemoryGroup):
    """No cgroup at all: what a half does when nothing limits it."""

    kills = 0

    def command(self, arguments: list[str]) -> list[str]:
        return arguments

    @property
    def usage(self) -> int:
        return 5

    @property
    def peak(self) -> int:
        return 9

    @property
    def oom_kills(self) -> int:
        return self.kills


def follow(kind: str, work: Work, group: MemoryGroup, timeout_s: float = 60) -> Half:
    half = Half(kind)
    run_half(half, work, group, timeout_s=timeout_s, changed=lambda: None)
    return half


def test_a_half_that_finishes(tree: Path) -> None:
    work = small_work(tree)
    half = follow("dict", work, NoGroup("v2", tree))
    assert half.state is State.FINISHED, half.errors
    assert (half.usage, half.highest) == (5, 9)
    assert half.progress.values == work.values


def test_a_half_that_takes_too_long(tree: Path) -> None:
    half = follow("dict", small_work(tree, 2000 * MIB), NoGroup("v2", tree), timeout_s=0.3)
    assert half.state is State.LATE


def test_a_half_that_fails_says_why(tree: Path) -> None:
    work = small_work(tree)
    os.unlink(work.files[0].path)
    half = follow("dict", work, NoGroup("v2", tree))
    assert half.state is State.FAILED
    assert "FileNotFoundError" in half.errors


def test_a_signal_from_anybody_is_no_oom_kill(tree: Path) -> None:
    class Killed(NoGroup):
        def command(self, arguments: list[str]) -> list[str]:
            return [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]

    assert follow("dict", small_work(tree), Killed("v2", tree)).state is State.FAILED

    class KilledForMemory(Killed):
        kills = 1

    half = follow("dict", small_work(tree), KilledForMemory("v2", tree))
    assert half.state is State.KILLED
    assert judge([half, Half("cache", State.FINISHED)]) == []


def test_a_half_that_finishes_beside_a_kill_has_not_finished(tree: Path) -> None:
    class OtherVictim(NoGroup):
        kills = 1

    assert follow("dict", small_work(tree), OtherVictim("v2", tree)).state is State.FAILED


def test_only_one_outcome_is_good() -> None:
    for first, second in itertools.product(State, State):
        good = first is State.KILLED and second is State.FINISHED
        assert (judge([Half("dict", first), Half("cache", second)]) == []) is good
