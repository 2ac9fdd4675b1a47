"""``pgalloc demo workers``: what it promises, what must make it fail, and that it cleans up."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pgalloc import MemoryFile
from pgalloc.cli.app import cli
from pgalloc.cli.files import KnownFile
from pgalloc.cli.workers import command as workers_command
from pgalloc.cli.workers.check import Checked
from pgalloc.cli.workers.crew import Crew, RunningCrew, State
from pgalloc.cli.workers.data import DataSet, find_data
from pgalloc.cli.workers.procfs import (
    SHM,
    Left,
    MemoryObject,
    left_of,
    members,
    memory_objects,
)
from pgalloc.cli.workers.verdict import GRAIN, judge
from pgalloc.cli.workers.ways import NOTHING, PGALLOC, PLAIN, SHARED_MEMORY, WAYS

MIB = 1 << 20


def segments(pid: int) -> list[Path]:
    """What the command makes in /dev/shm when it is this process."""
    return list(SHM.glob(f"pgalloc-demo-{pid}-*"))


def owners(folder: Path) -> list[str]:
    """The command lines of owners that are alive, and have their data in this folder."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            line = Path("/proc", pid, "cmdline").read_bytes().decode()
            if "pgalloc.cli.workers.owner" in line and str(folder) in line:
                found.append(line)
    return found


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Gives the folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    yield folder
    assert list(folder.iterdir()) == []
    assert segments(os.getpid()) == []
    assert owners(folder) == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """9 MiB in files of awkward sizes, an empty one among them."""
    top = tmp_path / "tree"
    (top / "below").mkdir(parents=True)
    for number, size in enumerate((0, 1, 4095, 4096, 4097, 100_000, MIB, 8 * MIB)):
        (top / "below" / f"file{number}").write_bytes(os.urandom(size))
    return top


def run_workers(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["demo", "workers", *map(str, arguments)])


def last_line(result: Result) -> str:
    return result.output.rstrip().splitlines()[-1]


# --- the whole -----------------------------------------------------------------------------------


def test_all_ways_hand_everything_over_and_pgalloc_leaves_nothing(tree: Path) -> None:
    result = run_workers(tree, "--workers", "2")
    assert result.exit_code == 0, result.output
    assert last_line(result).startswith("demo workers: OK — 8 files, 9.1 MiB: every digest matched")
    row = {
        line[:21].strip(): line.split()[-4:]
        for line in result.output.splitlines()
        if line.startswith("  ")
    }
    assert row["digests checked"] == ["0", "16", "16", "16"]
    assert row["wrong digests"] == ["0", "0", "0", "0"]
    assert row["left: processes"] == ["0", "0", "0", "0"]
    assert row["names in /dev/shm"] == ["0", "0", "1", "0"]
    copies = [float(figure) for figure in row["x one copy"]]
    assert copies[1] > 2.5  # the owner's and the workers'
    assert copies[3] < 1.5
    told = r"Removed /dev/shm/pgalloc-demo-\S+, 9.1 MiB, which shared_memory left behind"
    assert re.search(told, result.output)


def test_a_wrong_digest_is_a_failure(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def planted(path: str, **options: object) -> DataSet:
        first, *others = find_data(path, **options).files  # type: ignore[arg-type]
        return DataSet((first._replace(digest="0" * 64), *others))

    monkeypatch.setattr(workers_command, "find_data", planted)
    result = run_workers(tree, "--workers", "1")
    assert result.exit_code == 1, result.output
    assert last_line(result).startswith("demo workers: FAILED — plain: 1 wrong digest, 7 right")


def test_an_owner_that_fails_says_why(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanished(path: str, **options: object) -> DataSet:
        data = find_data(path, **options)  # type: ignore[arg-type]
        os.unlink(data.files[0].path)
        return data

    monkeypatch.setattr(workers_command, "find_data", vanished)
    result = run_workers(tree, "--workers", "1")
    assert result.exit_code == 1, result.output
    reason = last_line(result)
    assert reason.startswith("demo workers: FAILED — plain: failed: FileNotFoundError")
    assert reason.count("FileNotFoundError") == 3
    assert "Traceback" in result.output


def test_what_takes_too_long_is_a_failure(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow = RunningCrew.follow

    def at_once(self: RunningCrew, timeout_s: float, changed: Callable[[], object]) -> None:
        follow(self, 0.0, changed)

    monkeypatch.setattr(RunningCrew, "follow", at_once)
    result = run_workers(tree)
    assert result.exit_code == 1
    assert "took too long" in last_line(result)


def test_nothing_to_load_verifies_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    result = run_workers(tmp_path / "empty")
    assert result.exit_code == 1
    assert last_line(result).endswith("there was nothing to load, so nothing was verified")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["/no/such/folder"], "cannot look at /no/such/folder"),
        (["--workers", "0"], "workers"),
        (["--limit", "much"], "limit"),
    ],
)
def test_bad_arguments_are_told(arguments: list[str], reason: str) -> None:
    result = run_workers(*arguments)
    assert result.exit_code == 2
    assert reason in result.stderr


def test_the_limit_is_kept(tree: Path) -> None:
    assert find_data(str(tree), limit=MIB).nbytes <= MIB


def test_a_signal_ends_all_processes(tree: Path) -> None:
    """SIGINT in the middle: owners, segment and temporary folder go."""
    # Python leaves SIGINT alone where a shell ignores it, as for jobs in the background.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pgalloc.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "demo", "workers", str(tree)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 15
        while not segments(process.pid) and time.monotonic() < deadline:  # time: a bound on a hang
            time.sleep(0.005)  # time: it polls
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=15)
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert b"Aborted!" in output
    assert segments(process.pid) == []


def test_owners_end_with_the_command_however_it_ends(tree: Path, tmp_path: Path) -> None:
    data_file = tmp_path / "data"
    find_data(str(tree), limit=MIB).save(data_file)
    running = RunningCrew(Crew(NOTHING, 1), data_file, "unused")
    running.follow(15, lambda: None)
    assert len(members(running._process.pid)) >= 2
    assert running._process.stdin is not None
    running._process.stdin.close()  # as the kernel does when the command dies
    assert running._process.wait(timeout=10) == 0
    deadline = time.monotonic() + 10
    while members(running._process.pid) and time.monotonic() < deadline:  # time: a bound on a hang
        time.sleep(0.01)  # time: it polls
    assert members(running._process.pid) == []
    running.close()


# --- the verdict ---------------------------------------------------------------------------------

DATA = DataSet(tuple(KnownFile(f"file{number}", 10 * MIB, "") for number in range(10)))


@pytest.fixture
def crews() -> dict[str, Crew]:
    """How it should be."""
    crews = {way: Crew(way, 4, State.KILLED) for way in WAYS}
    for way, crew in crews.items():
        digests = 0 if way == NOTHING else len(DATA.files)
        crew.checked = [Checked(1.0, 2.0, digests, 0)] * 4
        crew.owner_bytes, crew.workers_bytes = 20 * MIB, 60 * MIB
    crews[PLAIN].workers_bytes += 5 * DATA.nbytes
    crews[SHARED_MEMORY].workers_bytes += DATA.nbytes
    crews[SHARED_MEMORY].left = Left((), (SHM / "name",), DATA.nbytes)
    crews[PGALLOC].workers_bytes += DATA.nbytes
    return crews


def test_what_is_promised_is_judged(crews: dict[str, Crew]) -> None:
    assert judge(list(crews.values()), DATA) == []


def test_pgalloc_may_have_a_tenth_more_and_the_grain(crews: dict[str, Crew]) -> None:
    crews[PGALLOC].workers_bytes += DATA.nbytes // 10 + 5 * GRAIN
    assert judge(list(crews.values()), DATA) == []
    crews[PGALLOC].owner_bytes += MIB
    (problem,) = judge(list(crews.values()), DATA)
    assert problem == "pgalloc: 116 MiB for 100 MiB, which is more than 115 MiB"


@pytest.mark.parametrize("left", [Left((7,)), Left(names=(SHM / "x",)), Left(nbytes=4096)])
def test_pgalloc_must_leave_nothing(crews: dict[str, Crew], left: Left) -> None:
    crews[PGALLOC].left = left
    (problem,) = judge(list(crews.values()), DATA)
    assert problem.startswith("pgalloc: left behind ")


@pytest.mark.parametrize("way", [PLAIN, SHARED_MEMORY, PGALLOC])
def test_every_digest_has_to_be_checked(crews: dict[str, Crew], way: str) -> None:
    crews[way].checked = [*crews[way].checked[:3], Checked(1.0, 2.0, 9, 0)]
    assert judge(list(crews.values()), DATA) == [f"{way}: 0 wrong digests, 39 right ones of 40"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", [state for state in State if state is not State.KILLED])
def test_every_way_has_to_come_to_its_end(crews: dict[str, Crew], way: str, state: State) -> None:
    crews[way].state = state
    (problem,) = judge(list(crews.values()), DATA)
    assert problem.startswith(f"{way}: {state.value}")


# --- what the kernel says ------------------------------------------------------------------------


NO_SESSION = -1


@contextlib.contextmanager
def a_name_in_shm() -> Iterator[tuple[Path, MemoryObject]]:
    """1 MiB with a name, open here."""
    path = SHM / f"pgalloc-test-{os.getpid()}"
    with path.open("wb", buffering=0) as file:
        try:
            file.write(bytes(MIB))
            objects = memory_objects([os.getpid()])
            yield path, next(entry for entry in objects if entry.name == path)
        finally:
            path.unlink(missing_ok=True)


def test_a_name_in_shm_is_seen_with_its_memory() -> None:
    with a_name_in_shm() as (path, entry):
        assert left_of(NO_SESSION, [entry]) == Left((), (path,), MIB)
        path.unlink()
        assert left_of(NO_SESSION, [entry]) == Left((), (), MIB)  # still open here
    assert not left_of(NO_SESSION, [entry])


def test_another_file_that_took_the_name_is_not_meant() -> None:
    with a_name_in_shm() as (path, entry):
        path.unlink()
        path.write_bytes(b"another")
        assert left_of(NO_SESSION, [entry]) == Left((), (), MIB)


def test_pages_of_a_memory_file_are_seen(mf: MemoryFile) -> None:
    with mf.allocate(8 * MIB) as pages:
        pages.view()[:] = bytes(8 * MIB)
        status = os.stat(mf.fileno())
        found = memory_objects([os.getpid()])
        (usage,) = (used for entry, used in found.items() if entry.inode == status.st_ino)
        assert usage == 8 * MIB


def test_who_belongs_to_a_session() -> None:
    command = "sleep 60 & exec sleep 60"
    process = subprocess.Popen(["sh", "-c", command], start_new_session=True)
    try:
        deadline = time.monotonic() + 10
        # time: a bound on a hang
        while len(members(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)  # time: it polls
        assert process.pid in members(process.pid)
        assert len(members(process.pid)) == 2
        process.send_signal(signal.SIGKILL)
        # time: a bound on a hang
        while process.pid in members(process.pid) and time.monotonic() < deadline:
            time.sleep(0.01)  # time: it polls
        assert (
            len(members(process.pid)) == 1
        )  # one that is killed but not waited for does not count
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
