"""``pgalloc doctor``, and the probes behind it."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import pgalloc
from pgalloc.cli.app import cli
from pgalloc.cli.doctor import huge_pages, kernel_features
from pgalloc.cli.doctor import pressure as doctor_pressure
from pgalloc.cli.doctor.kernel_features import probe_kernel_features
from pgalloc.cli.doctor.trial import run_trial
from pgalloc.pressure import (
    GuardedLimit,
    GuardStatus,
    LimitLevel,
    PressureInfo,
    PressureSource,
    discovery,
)
from pgalloc.pressure.discovery import Attempt, Candidate

MIB, GIB = 1 << 20, 1 << 30

FEATURES = {
    "memfd",
    "punch_hole",
    "populate_write",
    "cachestat",
    "userfaultfd",
    "shmem_huge_pages",
}


def run_doctor(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments])


def test_the_doctor_says_what_is_here_and_that_it_works() -> None:
    result = run_doctor()
    assert result.exit_code == 0, result.output
    for word in ("kernel", "page size", "cgroup", "limit", "usage", "pressure sources", "memfd"):
        assert word in result.output
    for word in ("huge pages", "userfaultfd", "cachestat", "MADV_POPULATE_WRITE", "headroom"):
        assert word in result.output
    assert os.uname().release in result.output
    assert result.output.rstrip().endswith("doctor: OK: what pgalloc needs works here")
    assert all(len(line) <= 80 for line in result.output.splitlines())


@pytest.mark.parametrize(
    ("of_all", "own", "why", "remedy"),
    [
        ("never", None, "never in", "transparent_hugepage_shmem=advise"),
        ("deny", "inherit", "deny in", "echo advise > "),
        ("advise", "never", "never in", "kB/shmem_enabled"),
        ("deny", "advise", "deny in", "transparent_hugepage_shmem="),
        ("never", "inherit", "never in", "echo advise > "),
        (None, None, "the kernel has none", "CONFIG_SHMEM"),
    ],
)
def test_which_switch_stands_in_the_way_of_huge_pages(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of_all: str | None,
    own: str | None,
    why: str,
    remedy: str,
) -> None:
    monkeypatch.setattr(huge_pages, "SWITCHES", tmp_path)
    size = pgalloc.HUGE_PAGE_SIZE >> 10
    for switch, choice in (("shmem_enabled", of_all), (f"hugepages-{size}kB/shmem_enabled", own)):
        if choice is not None:
            (tmp_path / switch).parent.mkdir(exist_ok=True)
            (tmp_path / switch).write_text(f"always [{choice}] other\n")
    with pytest.raises(huge_pages.NoHugePagesError, match=why) as raised:
        huge_pages.try_huge_page()
    assert remedy in " ".join([raised.value.remedy, *raised.value.advice])
    if of_all is not None:
        assert raised.value.remedy.startswith("as root: echo advise > ")
        words = " ".join(raised.value.advice)
        for word in ("/etc/tmpfiles.d/", "boot parameter", "Docker", "Kubernetes", "hugetlb"):
            assert word in words


def test_what_helps_is_printed_so_that_it_can_be_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switches = Path("/tmp") / f"switches-{os.getpid()}"
    switches.symlink_to(tmp_path)
    try:
        monkeypatch.setattr(huge_pages, "SWITCHES", switches)
        (tmp_path / "shmem_enabled").write_text("always within_size advise [never] deny force\n")
        printed = run_doctor().output
        features = json.loads(run_doctor("--json").output)["features"]
    finally:
        switches.unlink()
    lines = [line.rstrip() for line in printed.splitlines()]
    assert f"    echo advise > {switches}/shmem_enabled" in lines
    assert f"    w {switches}/shmem_enabled - - - - advise" in lines
    assert features["shmem_huge_pages"]["advice"]


@pytest.mark.parametrize(("had", "error"), [(True, None), (False, None), (False, MemoryError())])
def test_a_huge_page_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, had: bool, error: Exception | None
) -> None:
    def is_had() -> bool:
        if error is not None:
            raise error
        return had

    monkeypatch.setattr(huge_pages, "SWITCHES", tmp_path)
    monkeypatch.setattr(huge_pages, "_is_had", is_had)
    (tmp_path / "shmem_enabled").write_text("always within_size [advise] never\n")
    if had:
        assert huge_pages.try_huge_page() == "advise"
        return
    with pytest.raises(huge_pages.NoHugePagesError, match="advise, but"):
        huge_pages.try_huge_page()


def test_json_has_the_same() -> None:
    result = run_doctor("--json")
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert found["ok"] is True
    assert found["page_size"] == mmap.PAGESIZE
    assert set(found["features"]) == FEATURES
    assert found["pressure"]["source"] in ("v1", "v2", "systemd", "psi", "none")
    assert [step["error"] for step in found["trial"]] == [""] * len(found["trial"])


def test_the_trial_leaves_nothing_behind() -> None:
    fds = set(os.listdir("/proc/self/fd"))
    before = pgalloc.memory_accounting().total()
    assert all(step.error == "" for step in run_trial())
    assert set(os.listdir("/proc/self/fd")) <= fds
    assert pgalloc.memory_accounting().total() == before


def test_a_trial_that_fails_is_exit_status_1_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(self: pgalloc.Allocation) -> None:
        raise OSError(95, "fallocate: Operation not supported")

    monkeypatch.setattr(pgalloc.Allocation, "decommit", refuse)
    result = run_doctor()
    assert result.exit_code == 1
    assert "FAILED  decommit" in result.output
    assert "fallocate: Operation not supported" in result.output
    assert "ok  write" in result.output
    assert "free" not in result.output.split("Tried just now")[1]
    assert json.loads(run_doctor("--json").output)["ok"] is False


def findings_of(result: Result) -> dict[str, dict[str, object]]:
    return {finding["name"]: finding for finding in json.loads(result.output)["findings"]}


def test_no_source_is_said_and_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> PressureSource:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(
        discovery, "candidates", lambda **_: iter([Candidate("psi", "a file", refuse)])
    )
    result = run_doctor()
    assert result.exit_code == 0
    assert "MemoryFile(use_host_memcg_pressure=True)" in result.output
    findings = findings_of(run_doctor("--json"))
    assert (findings["pressure sources"]["found"], findings["pressure sources"]["good"]) == (
        "none",
        False,
    )
    assert findings["source psi"]["found"] == "no: Permission denied"


def test_sources_are_tried_and_closed_again() -> None:
    fds = set(os.listdir("/proc/self/fd"))
    found = json.loads(run_doctor("--json").output)
    assert {"kind": "guard", "name": "the native guard", "error": ""} in found["sources"]
    assert found["guard"]["headroom"] >= 0
    assert found["at_the_limit"]
    assert set(os.listdir("/proc/self/fd")) <= fds


def level(directory: str, limit: int | None, usage: int) -> LimitLevel:
    return LimitLevel(directory, limit, usage, 0)


def guarded(directory: str, limit: int | None, usage: int) -> GuardedLimit:
    available = None if limit is None else limit - usage
    return GuardedLimit(directory, limit, usage, 0, available, (limit or 0) // 10)


def status(*levels: GuardedLimit) -> GuardStatus:
    bare = GuardStatus(True, "none", None, 0, 0, 0, 0, 0, 0, 0, levels)
    tightest = bare.tightest
    return replace(bare, headroom=tightest.headroom) if tightest else bare


def test_every_level_with_a_limit_and_which_is_the_tightest() -> None:
    levels = (level("/cg/pod/app", 4 * GIB, GIB), level("/cg/pod", 2 * GIB, GIB + 900 * MIB))
    top = level("/cg", None, 5 * GIB)
    pressure = PressureInfo(
        2 * GIB, 0, 0, "v1", "/pod/app", (*levels, top), ("v1",), 16 * GIB, 8 * GIB
    )
    guard = status(*(guarded(one.directory, one.limit, one.usage) for one in (*levels, top)))
    found = doctor_pressure._limits(pressure, guard)
    assert [(f.name, f.found, f.meaning) for f in found[4:]] == [
        ("level", "3 GiB of 4 GiB left", "/cg/pod/app"),
        ("level", "124 MiB of 2 GiB left", "/cg/pod (the tightest)"),
    ]
    assert doctor_pressure._guard(guard).found == "keeps 204.8 MiB free"
    words = doctor_pressure._at_the_limit(guard, [Attempt("guard", "the native guard", "")])
    assert words[0].startswith("When less than 204.8 MiB is left below the 2 GiB of /cg/pod, ")


def test_a_level_that_the_guard_cannot_see_is_said() -> None:
    hidden = level("above /cg", 256 * MIB, MIB)
    pressure = PressureInfo(
        256 * MIB, 0, 0, "v1", "/", (level("/cg", None, MIB), hidden), ("v1",), GIB, GIB
    )
    found = doctor_pressure._limits(pressure, status(guarded("/cg", None, MIB)))
    assert "not guarded" in found[-1].meaning
    assert not found[-1].good


def test_no_limit_at_all_is_said() -> None:
    assert not doctor_pressure._guard(status()).good
    assert "No limit can be seen" in doctor_pressure._at_the_limit(status(), [])[0]


def test_probes_agree_with_what_can_be_checked_otherwise() -> None:
    fds = set(os.listdir("/proc/self/fd"))
    features = {feature.name: feature for feature in probe_kernel_features()}
    assert set(features) == FEATURES
    assert features["memfd"].available
    assert features["punch_hole"].available
    release = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
    if release < (6, 5):
        assert not features["cachestat"].available or features["cachestat"].detail == ""
    assert set(os.listdir("/proc/self/fd")) <= fds


def test_a_probe_that_the_kernel_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_features, "_SYS_CACHESTAT", 100_000)
    monkeypatch.setattr(kernel_features, "_MADV_POPULATE_WRITE", 9999)
    features = {feature.name: feature for feature in probe_kernel_features()}
    assert not features["cachestat"].available
    assert features["cachestat"].detail == f"{os.strerror(38)} (ENOSYS)"
    assert features["populate_write"].detail == f"{os.strerror(22)} (EINVAL)"
    assert ctypes.get_errno() >= 0
