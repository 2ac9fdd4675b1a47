"""``pgalloc doctor``, and the probes behind it."""

from __future__ import annotations

import ctypes
import json
import mmap
import os

import pytest
from click.testing import CliRunner, Result

import pgalloc
from pgalloc.cli import doctor_model
from pgalloc.cli.app import cli
from pgalloc.cli.doctor_trial import run_trial
from pgalloc.pressure import NoMemoryCgroupError, kernel_features
from pgalloc.pressure.kernel_features import probe_kernel_features

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
    assert set(os.listdir("/proc/self/fd")) == fds
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


def test_no_notification_is_said_and_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(callback: object) -> None:
        raise NoMemoryCgroupError(2, "no memory cgroup controller found")

    monkeypatch.setattr(doctor_model, "PressureLevelListener", refuse)
    assert run_doctor().exit_code == 0
    findings = {f["name"]: f for f in json.loads(run_doctor("--json").output)["findings"]}
    assert findings["notification"]["found"] == "no memory cgroup controller found"
    assert findings["notification"]["good"] is False


def test_probes_agree_with_what_can_be_checked_otherwise() -> None:
    fds = set(os.listdir("/proc/self/fd"))
    features = {feature.name: feature for feature in probe_kernel_features()}
    assert set(features) == FEATURES
    assert features["memfd"].available
    assert features["punch_hole"].available
    release = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
    if release < (6, 5):
        assert not features["cachestat"].available or features["cachestat"].detail == ""
    assert set(os.listdir("/proc/self/fd")) == fds


def test_a_probe_that_the_kernel_refuses_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_features, "_SYS_CACHESTAT", 100_000)
    monkeypatch.setattr(kernel_features, "_MADV_POPULATE_WRITE", 9999)
    features = {feature.name: feature for feature in probe_kernel_features()}
    assert not features["cachestat"].available
    assert features["cachestat"].detail == f"{os.strerror(38)} (ENOSYS)"
    assert features["populate_write"].detail == f"{os.strerror(22)} (EINVAL)"
    assert ctypes.get_errno() >= 0
