"""Cases of bad input for what processes share: paths, peers' files, objects, arrays, caches."""

# ruff: noqa: E731
# mypy: disable-error-code="misc, assignment"

from __future__ import annotations

import operator
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from conftest import CHUNK, PAGE
from hostile_cases import Case
from hostile_zoo import (
    BOOL,
    LENGTH,
    NUMBER,
    SECONDS,
    U32,
    Accepts,
    Hands,
    UserError,
    allocated,
    anything,
    either,
    int_of,
    integer,
    is_a,
    mappable,
    none,
    nothing,
)
from waiting import eventually

import pgalloc
from pgalloc import (
    Allocation,
    Cache,
    MemoryFile,
    PeerFile,
    Server,
    Shared,
    SharedList,
    _core,
    testing,
)

SOCKET = "socket"  # where something is served, in the folder that the test runs in
WAIT_S = 10.0
CONTENTS = b"p" * PAGE + bytes(3 * PAGE)


def socket_path(value: Any) -> bool:
    """Where a socket can be made."""
    return value == b"4096" or (
        isinstance(value, str) and value not in ("", "a\0b") and len(value) < 100
    )


def is_key(value: Any) -> bool:
    return type(value) in (str, bytes, int, tuple)


def age(value: Any) -> bool:
    return not isinstance(value, bool) and value is not None and SECONDS(value)


def pickled(value: Any) -> bool:
    try:
        pickle.dumps(value, 5)
    except Exception:
        return False
    return True


def all_pickled(value: Any) -> bool:
    try:
        return all(isinstance(item, (int, str)) or pickled(item) for item in value)
    except Exception:
        return False


def shape(value: Any) -> bool:
    """As numpy has it: any sequence of numbers. It has to fit a file, too."""
    number = int_of(value)
    if number is not None:
        return 0 <= number <= CHUNK // 8
    try:
        numbers = tuple(value)
    except Exception:
        return False
    return all(type(number) is int for number in numbers)


def dtype(value: Any) -> bool:
    try:
        return not np.dtype(value).hasobject
    except Exception:
        return False


def array_data(value: Any) -> bool:
    """What numpy makes an array of, without objects."""
    try:
        return not np.asarray(value).dtype.hasobject
    except Exception:
        return False


class Scene:
    """An owner and a peer, both in this process: a file, served, and a connection to it."""

    def __init__(self) -> None:
        self.channels = _core.broker_figures()["channels"]
        self.mf = MemoryFile(capacity=4 * CHUNK)
        self.server = self.mf.serve(SOCKET)
        self.peer = pgalloc.connect(SOCKET)
        self.pages = self.peer.allocate(4 * PAGE)
        self.pages._write(0, b"p" * PAGE)
        self.before = self.state()

    def state(self) -> tuple[Any, ...]:
        """All that was let go of is back."""
        self.peer.flush()
        assert self.mf.wait_for_reclaim(WAIT_S)
        return (
            [(segment.start, segment.end, segment.refs) for segment in self.mf.segments()],
            [lease.nbytes for lease in self.mf.leases()],
            self.peer.leased,
            bytes(self.pages),
            self.pages.pinned,
        )

    def close(self) -> None:
        self.pages.release()
        self.peer.close()
        self.server.close()
        wait_for_channels(self.channels)
        testing.verify(self.mf)
        self.mf.close()


def connect_within(scene: Scene, timeout: Any) -> None:
    pgalloc.connect(SOCKET, timeout=timeout).close()


def wait_for_channels(count: int) -> None:
    """Until the owner knows that peers have gone."""
    deadline = time.monotonic() + WAIT_S
    while True:
        if _core.broker_figures()["channels"] <= count:
            return
        assert time.monotonic() < deadline  # time: a bound on a hang
        time.sleep(0.0002)  # time: it polls


@contextmanager
def threads_end() -> Iterator[None]:
    """That of a connection ends a moment after the last reference to it."""
    before = len(os.listdir("/proc/self/task"))
    try:
        yield
    finally:
        eventually(lambda: len(os.listdir("/proc/self/task")) <= before, "the end of threads")


def on_peer(use: Callable[[Scene, Any], Any]) -> Callable[[Hands, Any], Any]:
    """A refusal must leave owner and peer as they were."""

    def call(h: Hands, value: Any) -> None:
        scene = Scene()
        try:
            use(scene, value)
        except BaseException:
            assert scene.state() == scene.before
            raise
        finally:
            scene.close()

    return call


def on_file(use: Callable[[MemoryFile, Any], Any]) -> Callable[[Hands, Any], Any]:
    """For what allocates before it refuses: a file of its own."""

    def call(h: Hands, value: Any) -> None:
        with MemoryFile(capacity=4 * CHUNK) as mf:
            try:
                use(mf, value)
            except pickle.PicklingError as error:  # what pickling raises may pass through
                raise UserError from error
            finally:
                testing.verify(mf)
            assert mf.wait_for_reclaim(WAIT_S)
            assert mf.segments() == []

    return call


def on_list(use: Callable[[SharedList, Any], Any]) -> Callable[[Hands, Any], Any]:
    return on_file(lambda mf, value: use(SharedList([b"raw", 7], file=mf), value) and None)


def on_path(connect: Callable[[Any], Any], *, with_cache: bool) -> Callable[[Hands, Any], Any]:
    """Connects to paths while something is served at one of the zoo's, and at part of one."""

    def call(h: Hands, value: Any) -> None:
        channels = _core.broker_figures()["channels"]
        with Cache() if with_cache else MemoryFile(capacity=CHUNK) as served:
            try:
                with served.serve("4096"), served.serve("a"):
                    connect(value).close()
            finally:
                wait_for_channels(channels)

    return call


def on_reader(use: Callable[[Cache, Any], Any]) -> Callable[[Hands, Any], Any]:
    def read(value: Any) -> None:
        channels = _core.broker_figures()["channels"]
        with Cache() as cache:
            cache["kept"] = b"v" * 100
            try:
                with cache.serve(SOCKET), Cache.connect(SOCKET) as reader:
                    try:
                        with suppress(KeyError):
                            use(reader, value)
                    finally:
                        assert reader.get("kept") == b"v" * 100
            finally:
                wait_for_channels(channels)
                testing.verify_cache(cache)

    # The reader has a thread, too, which ends with the last reference to it.
    return lambda h, value: _with_threads_gone(read, value)


def _with_threads_gone(call: Callable[[Any], None], value: Any) -> None:
    refusal: BaseException | None = None
    with threads_end():
        try:
            call(value)
        except BaseException as error:
            refusal = error.with_traceback(None)
    if refusal is not None:
        raise refusal


def serve_cache(h: Hands, value: Any) -> None:
    with Cache() as cache, cache.serve(value):
        pass


def make_server(h: Hands, **options: Any) -> None:
    arguments: dict[str, Any] = {"file": h.mf, "path": SOCKET, "readonly": False}
    Server(**{**arguments, **options}).close()


def share_in(h: Hands, value: Any) -> None:
    shared = pgalloc.share([b"x"], file=value)
    shared.release()
    assert shared._pages.file.wait_for_reclaim(WAIT_S)


def list_in(h: Hands, value: Any) -> None:
    items = SharedList([b"x"], file=value)
    items.release()
    assert items._pages.file.wait_for_reclaim(WAIT_S)


def cases_of_sharing() -> Iterator[Case]:
    """What processes share."""
    yield from _cases_of_paths()
    yield from _cases_of_peers()
    yield from _cases_of_objects()

    name = "MemoryFile.array"
    yield Case(name, "shape", on_file(lambda mf, v: mf.array(v) is None), shape)
    yield Case(name, "dtype", on_file(lambda mf, v: mf.array(3, v) is None), dtype)
    order = on_file(lambda mf, v: mf.array((3, 3), order=v) is None)
    yield Case(name, "order", order, none)
    name = "MemoryFile.array_like"
    yield Case(name, "data", on_file(lambda mf, v: mf.array_like(v) is None), array_data)
    convert = on_file(lambda mf, v: mf.array_like(np.zeros(3), dtype=v) is None)
    yield Case(name, "dtype", convert, dtype)
    order = on_file(lambda mf, v: mf.array_like(np.zeros((3, 3)), order=v) is None)
    yield Case(name, "order", order, none)
    yield Case("array", "data", lambda h, v: pgalloc.array(v) is None, array_data)
    convert = lambda h, v: pgalloc.array(np.zeros(3), dtype=v) is None
    yield Case("array", "dtype", convert, dtype)
    name = "MemoryFile.drop_unclaimed"
    yield Case(name, "older_than", lambda h, v: h.mf.drop_unclaimed(v), age)


def _cases_of_paths() -> Iterator[Case]:
    yield Case("MemoryFile.serve", "path", lambda h, v: h.mf.serve(v).close(), socket_path)
    readonly = lambda h, v: h.mf.serve(SOCKET, readonly=v).close()
    yield Case("MemoryFile.serve", "readonly", readonly, BOOL)
    limits = lambda h, v: h.mf.serve(SOCKET, limits=v).close()
    yield Case("MemoryFile.serve", "limits", limits, none)
    for name, low, high in (
        ("nbytes", 0, 2**63),
        ("unclaimed", 0, 2**63),
        ("requests", 1, 2**31),
        ("children", 0, 2**31),
        ("unpinned", 0, 2**62),
    ):
        number: Accepts = lambda value, low=low, high=high: low <= (int_of(value) or -1) <= high
        zero: Accepts = lambda value, low=low: int_of(value) == 0 == low
        optional = name in ("nbytes", "unclaimed")
        accepts = either(number, zero, none) if optional else either(number, zero)
        make = lambda h, v, name=name: pgalloc.Limits(**{name: v}) is None
        yield Case("Limits", name, make, accepts)
    yield Case("Cache.serve", "path", serve_cache, socket_path)

    served: Accepts = lambda value: value in ("4096", b"4096") and isinstance(value, (str, bytes))
    yield Case("connect", "path", on_path(pgalloc.connect, with_cache=False), served)
    yield Case("Cache.connect", "path", on_path(Cache.connect, with_cache=True), served)
    no_cache = on_path(Cache.connect, with_cache=False)
    yield Case("Cache.connect", "path of a file", no_cache, nothing)

    options: dict[str, Accepts] = {
        "file": is_a(MemoryFile),  # peers learn that it is closed
        "path": socket_path,
        "readonly": BOOL,
        "cache": none,
    }
    for option, accepts in options.items():
        yield Case("Server", option, lambda h, v, o=option: make_server(h, **{o: v}), accepts)

    get = "Cache.get"
    yield Case(get, "key, connected", on_reader(lambda r, v: r.get(v)), anything)
    yield Case(f"{get}_bytes", "key, connected", on_reader(lambda r, v: r.get_bytes(v)), anything)
    yield Case(
        f"{get}_bytes", "default, connected", on_reader(lambda r, v: r.get_bytes("a", v)), anything
    )
    yield Case(get, "item, connected", on_reader(lambda r, v: r[v]), is_key)
    yield Case(get, "default, connected", on_reader(lambda r, v: r.get("a", v)), anything)


def _cases_of_peers() -> Iterator[Case]:
    yield Case("PeerFile", "connection", lambda h, v: PeerFile(v, 1), nothing)
    named = on_peer(lambda s, v: PeerFile(s.peer._connection, v).close())
    yield Case("PeerFile", "name", named, nothing)

    keywords: dict[str, Accepts] = {
        "kind": integer(0, 5),
        "direction": integer(0, 2),
        "memcg_id": U32,
        "mode": integer(0, 3),
        "reader": either(none, callable),
    }
    # With 0, too: the answer may be there at once.
    yield Case("connect", "timeout", on_peer(connect_within), SECONDS)
    for method in ("allocate", "allocate_range"):
        name = f"PeerFile.{method}"
        call = on_peer(lambda s, v, m=method: getattr(s.peer, m)(v))
        yield Case(name, "length", call, LENGTH)
        for keyword, accepts in keywords.items():
            call = on_peer(lambda s, v, m=method, k=keyword: getattr(s.peer, m)(PAGE, **{k: v}))
            yield Case(name, keyword, call, accepts)
    for method in ("inc_ref", "dec_ref", "has_unique_ref", "decommit"):
        call = on_peer(lambda s, v, m=method: getattr(s.peer, m)(v))
        yield Case(f"PeerFile.{method}", "range", call, allocated)
    name = "PeerFile.map_range"
    yield Case(name, "range", on_peer(lambda s, v: s.peer.map_range(v)), mappable)
    access = on_peer(lambda s, v: s.peer.map_range(s.pages.range, v))
    yield Case(name, "access", access, lambda value: value == "rw")
    yield Case("PeerFile.array", "shape", on_peer(lambda s, v: s.peer.array(v) is None), shape)
    yield Case("PeerFile.array", "dtype", on_peer(lambda s, v: s.peer.array(3, v) is None), dtype)
    name = "PeerFile.array_like"
    yield Case(name, "data", on_peer(lambda s, v: s.peer.array_like(v) is None), array_data)
    memcg = either(none, U32)
    yield Case("PeerFile.usage", "memcg_id", on_peer(lambda s, v: s.peer.usage(v)), memcg)
    yield Case("PeerFile.flush", "timeout", on_peer(lambda s, v: s.peer.flush(v)), SECONDS)

    yield Case(
        "Allocation", "range of a peer", on_peer(lambda s, v: Allocation(s.peer, v)), nothing
    )
    for parameter, whole in (("start of a peer's", (None, 4)), ("stop of a peer's", (0, None))):

        def slice(scene: Scene, value: Any, whole: Any = whole) -> None:
            scene.pages.slice(*(value if at is None else at * PAGE for at in whole))

        fits: Accepts = lambda value, first=whole[0]: (
            ((number := int_of(value)) is not None and 0 <= number <= 4 * PAGE)
            or (first is None and value is False)
        )
        yield Case("Allocation.slice", parameter, on_peer(slice), fits)


def _cases_of_objects() -> Iterator[Case]:
    shared = on_file(lambda mf, v: pgalloc.share(v, file=mf) is None)
    yield Case("share", "obj", shared, pickled)
    yield Case("share", "file", share_in, none)
    yield Case("Shared", "pages", lambda h, v: Shared(v), nothing)
    items = on_file(lambda mf, v: SharedList(v, file=mf) is None)
    yield Case("SharedList", "items", items, all_pickled)
    yield Case("SharedList", "file", list_in, none)
    yield Case("SharedList.count", "value", on_list(lambda s, v: s.count(v)), anything)

    def find(*arguments: Any) -> Callable[[SharedList, Any], Any]:
        """What is not there is no refusal."""

        def call(items: SharedList, value: Any) -> None:
            try:
                items.index(*(value if argument is None else argument for argument in arguments))
            except ValueError as error:
                if str(error):  # not that of Sequence.index()
                    raise

        return call

    index = "SharedList.index"
    yield Case(index, "value", on_list(find(None)), anything)
    yield Case(index, "start", on_list(find(7, None)), is_a(int, float))
    yield Case(index, "stop", on_list(find(7, 0, None)), either(none, NUMBER, is_a(bool)))

    def item(items: SharedList, value: Any) -> None:
        with suppress(IndexError):
            operator.getitem(items, value)

    yield Case(index, "item", on_list(item), lambda value: hasattr(value, "__index__"))
