"""Single sources: PSI triggers, systemd's protocol, the guard's crossings, signals by hand."""

from __future__ import annotations

import base64
import copy
import logging
import os
import pickle
import select
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_guard import FakeGuard, fake_guard

from pgalloc.pressure import ManualSource, discovery, systemd
from pgalloc.pressure.guard import GuardSource
from pgalloc.pressure.psi import PsiTrigger, StallTotal
from pgalloc.pressure.signals import PressureSource, V2Events
from pgalloc.pressure.systemd import SystemdPressure

SYSTEM_PSI = Path("/proc/pressure/memory")
WAIT_MS = 10_000


def psi_text(some: int, full: int) -> str:
    return (
        f"some avg10=0.00 avg60=0.00 avg300=0.00 total={some}\n"
        f"full avg10=0.00 avg60=0.00 avg300=0.00 total={full}\n"
    )


def ready(source: PressureSource, timeout_ms: int = WAIT_MS) -> int:
    """The poll events of a source; 0 if there are none."""
    poller = select.poll()
    poller.register(source.fd, source.poll_mask)
    found = poller.poll(timeout_ms)
    return found[0][1] if found else 0


# --- PSI -----------------------------------------------------------------------------------------


@pytest.fixture
def psi_file(tmp_path: Path) -> Path:
    file = tmp_path / "memory.pressure"
    file.write_text(psi_text(some=5_000_000, full=1_000_000))
    return file


def test_psi_an_event_without_a_stall_behind_it_is_dropped(psi_file: Path) -> None:
    trigger = PsiTrigger(psi_file, "some", stall_us=200_000, window_us=2_000_000)
    psi_file.write_text(psi_text(some=5_000_100, full=9_000_000))
    assert trigger.take(select.POLLPRI) is False  # the first after arming
    psi_file.write_text(psi_text(some=5_199_999, full=9_000_000))
    assert trigger.take(select.POLLPRI) is False
    psi_file.write_text(psi_text(some=5_200_000, full=9_000_000))
    assert trigger.take(select.POLLPRI) is True
    assert trigger.take(select.POLLPRI) is False  # nothing since
    trigger.close()


def test_psi_full_has_its_own_total(psi_file: Path) -> None:
    trigger = PsiTrigger(psi_file, "full", stall_us=1000, window_us=2_000_000, level="critical")
    psi_file.write_text(psi_text(some=9_000_000, full=1_000_999))
    assert trigger.take(select.POLLPRI) is False
    psi_file.write_text(psi_text(some=9_000_000, full=1_001_000))
    assert trigger.take(select.POLLPRI) is True
    assert trigger.level == "critical"
    trigger.close()


def test_psi_the_request_ends_with_a_nul(psi_file: Path) -> None:
    trigger = PsiTrigger(psi_file, "some", stall_us=200_000, window_us=2_000_000)
    assert psi_file.read_bytes().startswith(b"some 200000 2000000\0")
    trigger.close()


def test_psi_a_wake_up_without_an_event_is_none_and_an_error_is_the_end(psi_file: Path) -> None:
    trigger = PsiTrigger(psi_file, "some", stall_us=1, window_us=2_000_000)
    psi_file.write_text(psi_text(some=9_000_000, full=0))
    assert trigger.take(0) is False
    with pytest.raises(OSError, match="gone"):
        trigger.take(select.POLLPRI | select.POLLERR)
    psi_file.unlink()
    with pytest.raises(FileNotFoundError):
        trigger.take(select.POLLPRI)
    trigger.close()


def test_psi_a_file_without_the_counter_is_believed(tmp_path: Path) -> None:
    file = tmp_path / "odd"
    file.write_text("some avg10=0.00\n")
    total = StallTotal(file, "some", 1000)
    assert total.rose() is True
    file.write_text(psi_text(some=7, full=7))
    assert total.rose() is True  # nothing to compare with
    assert total.rose() is False


# --- systemd -------------------------------------------------------------------------------------


def variables(path: Path, write: bytes | None = None) -> dict[str, str]:
    found = {"MEMORY_PRESSURE_WATCH": str(path)}
    if write is not None:
        found["MEMORY_PRESSURE_WRITE"] = base64.b64encode(write).decode()
    return found


def test_systemd_fifo(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    source = SystemdPressure(variables(path))
    assert ready(source, 0) == 0
    for _ in range(2):
        with path.open("wb") as writer:
            writer.write(b"x" * 100)
        assert source.take(ready(source)) is True
        assert ready(source, 0) == 0  # read away, and no end of file
    assert source.take(select.POLLIN) is False
    source.close()


def test_systemd_fifo_gets_what_is_to_be_written(tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    source = SystemdPressure(variables(path, b"hello\0"))
    assert os.read(reader, 100) == b"hello\0"
    os.close(reader)
    source.close()


def test_systemd_stream_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        source = SystemdPressure(variables(path, b"some 200000 2000000\0"))
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(100) == b"some 200000 2000000\0"
            assert ready(source, 0) == 0
            connection.send(b"!")
            assert source.take(ready(source)) is True
            assert ready(source, 0) == 0
        with pytest.raises(OSError, match="closed by the other side"):
            source.take(ready(source))
        source.close()


def test_systemd_regular_file_is_a_pressure_file(psi_file: Path) -> None:
    source = SystemdPressure(variables(psi_file, b"full 1000 2000000\0"))
    assert source.poll_mask == select.POLLPRI
    assert psi_file.read_bytes().startswith(b"full 1000 2000000\0")
    psi_file.write_text(psi_text(some=9_000_000, full=1_000_999))
    assert source.take(select.POLLPRI) is False  # the first false event, again
    psi_file.write_text(psi_text(some=9_000_000, full=1_001_000))
    assert source.take(select.POLLPRI) is True
    with pytest.raises(OSError, match="gone"):
        source.take(select.POLLERR)
    source.close()


@pytest.mark.parametrize("request_", [b"some x y\0", b"some 1\0", b"most 1 2\0", b"\xff\0"])
def test_systemd_requests_that_are_not_understood_are_passed_on(
    psi_file: Path, request_: bytes
) -> None:
    source = SystemdPressure(variables(psi_file, request_))
    assert psi_file.read_bytes().startswith(request_)
    assert source.take(select.POLLPRI) is True
    source.close()


def test_systemd_without_anything_to_write(psi_file: Path) -> None:
    before = psi_file.read_bytes()
    psi_file.chmod(0o400)
    source = SystemdPressure(variables(psi_file))
    assert source.take(select.POLLPRI) is True
    assert psi_file.read_bytes() == before
    source.close()


def test_systemd_on_a_real_pressure_file() -> None:
    if not os.access(SYSTEM_PSI, os.W_OK):
        pytest.skip("no writable /proc/pressure/memory")
    try:
        source = SystemdPressure(variables(SYSTEM_PSI, b"some 200000 2000000\0"))
    except OSError as error:
        pytest.skip(f"no triggers here: {error}")
    assert not ready(source, 0) & select.POLLERR
    source.close()


def test_systemd_what_cannot_be_watched_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    stale = tmp_path / "stale"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(stale))
    environments = [
        {},
        {"MEMORY_PRESSURE_WATCH": ""},
        {"MEMORY_PRESSURE_WATCH": "/dev/null"},
        {"MEMORY_PRESSURE_WATCH": "relative/path"},
        {"MEMORY_PRESSURE_WATCH": "/dev/zero"},
        variables(tmp_path),
        variables(tmp_path / "none"),
        variables(stale),
        {**variables(tmp_path / "file"), "MEMORY_PRESSURE_WRITE": "not base64!"},
        {**variables(tmp_path / "file"), "MEMORY_PRESSURE_WRITE": "\udcff"},
    ]
    for environ in environments:
        with pytest.raises(OSError):
            SystemdPressure(environ)


def test_systemd_set_and_off() -> None:
    assert not systemd.is_set({})
    assert not systemd.is_off({})
    assert systemd.is_off({"MEMORY_PRESSURE_WATCH": "/dev/null"})
    assert systemd.is_set({"MEMORY_PRESSURE_WATCH": "/run/x"})


# --- by hand, and the guard ----------------------------------------------------------------------


def test_manual_signals_come_one_by_one_in_order() -> None:
    source = ManualSource("by hand")
    assert (source.name, source.kind) == ("by hand", "manual")
    for level in ("low", "critical", "medium"):
        source.signal(level)
    source.signal()
    taken = []
    while ready(source, 0):
        assert source.take(select.POLLIN) is True
        taken.append(source.level)
    assert taken == ["low", "critical", "medium", "low"]
    assert source.take(select.POLLIN) is False
    source.close()
    source.close()
    with pytest.raises(ValueError, match="closed"):
        source.signal()


def test_manual_refuses_other_levels() -> None:
    source = ManualSource()
    for level in ("none", "", "LOW", None, 1):
        with pytest.raises(ValueError, match="low, medium, critical"):
            source.signal(level)  # type: ignore[arg-type]
    assert ready(source, 0) == 0


def test_a_source_that_is_forgotten_is_closed() -> None:
    fd = ManualSource().fd
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_source_can_neither_be_pickled_nor_copied(psi_file: Path) -> None:
    """A copy would have the number of the descriptor, and close what is another's by then."""
    sources = [ManualSource(), PsiTrigger(psi_file, "some", stall_us=1, window_us=2_000_000)]
    for source in sources:
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=r"cannot be (pickled|copied)"):
                call(source)
        source.close()


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeGuard]:
    with fake_guard(monkeypatch) as fake:
        yield fake


def test_the_guards_crossings(native: FakeGuard) -> None:
    source = GuardSource()
    assert native.watched == [source.fd]
    assert source.take(select.POLLIN) is False
    for level, seen in (("medium", "medium"), ("critical", "critical"), ("none", "low")):
        native.cross(level)
        native.cross(level)
        assert source.take(ready(source)) is True
        assert source.level == seen
        assert ready(source, 0) == 0
    source.close()
    source.close()
    assert native.watched == []


def test_a_guard_that_refuses_leaves_nothing_open(
    native: FakeGuard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(24, "too many")

    monkeypatch.setattr(native, "guard_watch", refuse)
    with pytest.raises(OSError, match="too many"):
        GuardSource()


def test_v2_counters_have_levels(tmp_path: Path) -> None:
    file = tmp_path / "memory.events"
    file.write_text("high 0\nmax 0\noom 0\n")
    source = V2Events(file, {"high", "max", "oom"})
    for text, level in (
        ("high 1\nmax 0\noom 0\n", "low"),
        ("high 2\nmax 1\noom 0\n", "medium"),
        ("high 3\nmax 2\noom 1\n", "critical"),
        ("high 4\nmax 2\noom 1\n", "low"),
    ):
        file.write_text(text)
        assert source.take(select.POLLPRI) is True
        assert source.level == level
    source.close()


# --- which there are -----------------------------------------------------------------------------


class FakeHost:
    """procfs and a cgroup mount in a temporary directory."""

    def __init__(self, top: Path, fstype: str, options: str) -> None:
        self.proc, self.root, self.group = top / "proc", top / "root", top / "root/cg/app"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "pressure").mkdir()
        self.group.mkdir(parents=True)
        (self.proc / "self/mountinfo").write_text(
            f"1 2 0:1 / /cg rw - {fstype} {fstype} {options}\n"
        )
        membership = "0::/app\n" if fstype == "cgroup2" else "4:memory:/app\n"
        (self.proc / "self/cgroup").write_text(membership)
        (self.proc / "pressure/memory").write_text(psi_text(0, 0))

    def kinds(self, environ: dict[str, str]) -> list[str]:
        found = discovery.candidates(proc=self.proc, root=self.root, environ=environ)
        return [candidate.kind for candidate in found]

    def names(self, environ: dict[str, str]) -> list[str]:
        found = discovery.candidates(proc=self.proc, root=self.root, environ=environ)
        return [candidate.name for candidate in found]


def test_the_sources_of_v2(native: FakeGuard, tmp_path: Path) -> None:
    host = FakeHost(tmp_path, "cgroup2", "rw")
    for name in ("memory.max", "memory.events"):
        (host.group / name).write_text("max 0\n")
    (host.group / "memory.pressure").write_text(psi_text(0, 0))
    assert host.kinds({}) == ["guard", "v2", *["psi"] * 6]
    assert host.names({})[1:3] == [
        f"{host.group}/memory.events low",
        f"{host.group}/memory.pressure low",
    ]


def test_the_sources_of_v1(native: FakeGuard, tmp_path: Path) -> None:
    host = FakeHost(tmp_path, "cgroup", "rw,memory")
    for directory in (host.group, host.group.parent):
        (directory / "memory.pressure_level").write_text("")
    assert host.kinds({}) == ["guard", *["v1"] * 6, *["psi"] * 3]
    (host.group.parent / "memory.pressure_level").unlink()
    assert host.kinds({}) == ["guard", *["v1"] * 3, *["psi"] * 3]


def test_systemd_comes_before_psi_and_can_turn_it_off(native: FakeGuard, tmp_path: Path) -> None:
    host = FakeHost(tmp_path, "cgroup2", "rw")
    (host.group / "memory.max").write_text("max\n")
    assert host.kinds(variables(tmp_path))[:3] == ["guard", "systemd", "psi"]
    assert host.kinds({"MEMORY_PRESSURE_WATCH": "/dev/null"}) == ["guard"]


def test_systemd_wins_over_psi_if_it_can_be_opened(
    native: FakeGuard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    kinds = opened(variables(fifo))
    assert "systemd" in kinds
    assert "psi" not in kinds
    with caplog.at_level(logging.DEBUG, "pgalloc.pressure"):
        assert "systemd" not in opened(variables(tmp_path / "gone"))
    assert "not watching" in caplog.text


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        (set(), ["guard", "systemd"]),
        ({"systemd"}, ["guard", "psi own low", "psi own medium"]),
        ({"systemd", "psi own low"}, ["guard", "psi own medium"]),
        ({"systemd", "psi own low", "psi own medium"}, ["guard", "psi machine"]),
        ({"systemd", "psi own low", "psi own medium", "psi machine"}, ["guard"]),
    ],
)
def test_of_what_tells_of_stalls_the_nearest_is_enough(
    monkeypatch: pytest.MonkeyPatch, refused: set[str], left: list[str]
) -> None:
    def opens(name: str) -> PressureSource:
        if name in refused:
            raise PermissionError(13, "Permission denied")
        return ManualSource(name)

    distances = {"guard": 0, "systemd": 1, "psi own low": 2, "psi own medium": 2, "psi machine": 3}
    monkeypatch.setattr(
        discovery,
        "candidates",
        lambda **_: (
            discovery.Candidate(name.split()[0], name, lambda name=name: opens(name), distance)
            for name, distance in distances.items()
        ),
    )
    sources = list(discovery.open_everything())
    for source in sources:
        source.close()
    assert [source.name for source in sources] == left


def test_stalls_of_the_own_group_are_nearer_than_those_of_the_machine(
    native: FakeGuard, tmp_path: Path
) -> None:
    host = FakeHost(tmp_path, "cgroup2", "rw")
    (host.group / "memory.max").write_text("max\n")
    (host.group / "memory.pressure").write_text(psi_text(0, 0))
    found = discovery.candidates(proc=host.proc, root=host.root, environ=variables(tmp_path))
    assert [candidate.distance for candidate in found] == [0, 1, 2, 2, 2, 3, 3, 3]


def opened(environ: dict[str, str]) -> list[str]:
    sources = list(discovery.open_everything(environ))
    for source in sources:
        source.close()
    return [source.kind for source in sources]


def test_nothing_at_all(native: FakeGuard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery.default_guard, "has_something_to_watch", lambda: False)
    assert list(discovery.candidates(proc=tmp_path, root=tmp_path, environ={})) == []


def test_what_came_of_trying(native: FakeGuard) -> None:
    attempts = discovery.try_everything({"MEMORY_PRESSURE_WATCH": "/nowhere"})
    assert attempts[0] == discovery.Attempt("guard", "the native guard", "")
    refused = [attempt for attempt in attempts if attempt.kind == "systemd"]
    assert refused == [discovery.Attempt("systemd", "/nowhere", "No such file or directory")]
