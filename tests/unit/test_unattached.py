"""What cannot be attached when it is received, and exceptions on their way to other processes.

Unpickling never fails by itself: the first use raises, in the function that was called, so that the
caller of a Pool or an executor hears of it and goes on.
"""

from __future__ import annotations

import copy
import inspect
import io
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import peers
import pytest
from array_work import add, little_room, load, look
from conftest import PAGE
from peers import Peer
from waiting import TIMEOUT_S

import pgalloc
from pgalloc import FileRange, FillError, MemoryFile, OwnerGoneError, SharingError
from pgalloc.sharing import transport
from pgalloc.sharing.unattached import Unattached, attach

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture(scope="module", autouse=True)
def spawned() -> Iterator[Peer]:
    """One peer for many tests."""
    yield from peers.first()


def raised_by(call: Callable[..., Any]) -> BaseException | None:
    try:
        call()
    except Exception as error:
        return error
    return None


def all_kinds(mf: MemoryFile) -> dict[str, Any]:
    return {
        "Allocation": mf.allocate(PAGE),
        "SharedArray": mf.array(3),
        "numpy's own": np.asarray(mf.array(3)),
        "Shared": pgalloc.share(1, file=mf),
        "SharedList": pgalloc.SharedList([1, 2], file=mf),
    }


USES: dict[str, Callable[[Any], Any]] = {
    "an attribute": lambda it: it.nbytes,
    "a method": lambda it: it.view(),
    "an item": lambda it: it[0],
    "a slice": lambda it: it[1:],
    "assignment": lambda it: it.__setitem__(0, 1),
    "an attribute that is set": lambda it: setattr(it, "x", 1),
    "len": len,
    "iteration": list,
    "in": lambda it: 1 in it,
    "with": lambda it: it.__enter__(),
    "arithmetic": lambda it: 1 + it,
    "arithmetic in place": lambda it: it.__iadd__(1),
    "an array and it": lambda it: np.ones(3) * it,
    "comparison": lambda it: it == 1,
    "truth": bool,
    "asarray": np.asarray,
    "sum": np.sum,
    "a ufunc": np.sqrt,
    "concatenate": lambda it: np.concatenate([np.ones(1), it]),
    "float": float,
    "bytes": bytes,
    "call": lambda it: it(),
}


@pytest.mark.parametrize("lost", [OSError(12, "no memory"), MemoryError(), SharingError("gone")])
def test_the_first_use_raises_and_not_the_arrival(
    mf: MemoryFile, monkeypatch: pytest.MonkeyPatch, lost: Exception
) -> None:
    names: dict[str, Any] = {"__name__": "pgalloc.elsewhere", "lost": lost}
    exec("def fail(*token): raise lost", names)  # as pgalloc itself does, not a signal handler

    packets = {name: bytes(ForkingPickler.dumps(it)) for name, it in all_kinds(mf).items()}
    with monkeypatch.context() as patch:
        patch.setattr("pgalloc.sharing.transport.claim", names["fail"])
        results = {name: pickle.loads(packet) for name, packet in packets.items()}
    mf.drop_unclaimed()
    for name, result in results.items():
        assert type(result) is Unattached, name
        for use, act in USES.items():
            error = raised_by(lambda it=result, act=act: act(it))
            assert isinstance(error, SharingError), (name, use, error)
            assert (str(lost) or "MemoryError") in str(error)
        assert "Unattached" in repr(result)
        assert str(result) == f"{result}" == repr(result)


def test_what_is_lost_can_be_kept_and_sent_on() -> None:
    lost = attach(transport.receive, b"no such owner", b"", bytes(16), 0, 0, bytes(16))
    assert type(lost) is Unattached
    assert lost in {lost: 1}
    for protocol in PROTOCOLS:
        for other in (
            pickle.loads(pickle.dumps(lost, protocol)),
            copy.copy(lost),
            copy.deepcopy(lost),
        ):
            with pytest.raises(OwnerGoneError, match="no such owner"):
                other.view()
    with pytest.raises(SharingError) as raised:
        lost.view()
    assert isinstance(raised.value.__cause__, OwnerGoneError)


def test_what_interrupts_is_not_kept() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attach(interrupt)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_the_caller_hears_of_it_and_goes_on(mf: MemoryFile, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with context.Pool(1, little_room) as pool:
        for name, thing in all_kinds(mf).items():
            error = raised_by(pool.apply_async(look, (thing,)).get)
            assert isinstance(error, SharingError), (name, error)
            assert "attached" in str(error)
        assert pool.apply_async(add, (1, 2)).get(TIMEOUT_S) == 3
        pool.close()
        pool.join()
    with ProcessPoolExecutor(1, mp_context=context, initializer=little_room) as executor:
        with pytest.raises(SharingError, match="attached"):
            executor.submit(look, mf.array(3)).result(TIMEOUT_S)
        assert executor.submit(add, 1, 2).result(TIMEOUT_S) == 3
    mf.drop_unclaimed()


# --- exceptions ----------------------------------------------------------------------------------


def exceptions() -> list[type[BaseException]]:
    """All classes of exceptions in the package."""
    found = set()
    for module in pkgutil.walk_packages(pgalloc.__path__, "pgalloc."):
        if module.name.endswith("__main__"):
            continue
        for value in vars(import_module(module.name)).values():
            kind = value if inspect.isclass(value) else object
            if issubclass(kind, BaseException) and kind.__module__.startswith("pgalloc"):
                found.add(kind)
    return sorted(found, key=lambda kind: kind.__qualname__)


@pytest.mark.parametrize("kind", exceptions(), ids=lambda kind: kind.__name__)
def test_exceptions_survive_pickling(kind: type[BaseException]) -> None:
    errors = [kind("text", FileRange(0, PAGE), None) if kind is FillError else kind("text")]
    if issubclass(kind, OSError) and kind is not FillError:
        errors.append(kind(5, "text"))
    for error in errors:
        error.add_note("a note")
        for protocol in PROTOCOLS:
            for dumps in (pickle.dumps, ForkingPickler.dumps):
                result = pickle.loads(bytes(dumps(error, protocol)))
                assert type(result) is kind
                assert str(result) == str(error)
                assert result.__notes__ == ["a note"]
                assert getattr(result, "errno", None) == getattr(error, "errno", None)


def test_a_fill_error_keeps_its_range(mf: MemoryFile) -> None:
    with pytest.raises(FillError) as raised:
        mf.allocate(2 * PAGE, reader=io.BytesIO(b"x" * PAGE).readinto)
    error = raised.value
    for make in (lambda it: pickle.loads(pickle.dumps(it)), copy.copy, copy.deepcopy):
        result = make(error)
        assert (str(result), result.range, result.allocation) == (str(error), error.range, None)
    assert error.allocation is not None
    assert bytes(error.allocation.view()) == b"x" * PAGE


class OwnFillError(FillError):
    pass


def test_a_fill_error_of_a_users_own_stays_one() -> None:
    result = pickle.loads(pickle.dumps(OwnFillError("text", FileRange(0, PAGE), None)))
    assert type(result) is OwnFillError


def test_a_fill_error_reaches_the_caller_of_a_pool() -> None:
    with multiprocessing.get_context("forkserver").Pool(1) as pool:
        with pytest.raises(FillError):
            pool.apply_async(load, (1 << 20,)).get(TIMEOUT_S)
        assert pool.apply_async(add, (1, 2)).get(TIMEOUT_S) == 3
        pool.close()
        pool.join()
