"""Arrays in pages: arrays like any other, but that they travel without a copy."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import Any

import numpy as np
import peers
import pytest
from array_kinds import elsewhere, in_pages, same
from array_work import Sample, double, rows, total, view, write
from conftest import PAGE
from peers import Peer
from waiting import eventually

import pgalloc
from pgalloc import MemoryFile, OptionError, OutOfMemoryError, RangeError
from pgalloc.sharing import imports, picklers
from pgalloc.sharing.arrays import SharedArray
from pgalloc.sharing.arrays.shared_array import pages_of

METHODS = ["spawn", "fork", "forkserver"]
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.fixture(scope="module", autouse=True)
def spawned() -> Iterator[Peer]:
    """One peer for many tests."""
    yield from peers.first()


def there_and_back(value: Any, protocol: int | None = None) -> Any:
    """As multiprocessing does it."""
    return pickle.loads(bytes(ForkingPickler.dumps(value, protocol)))


# --- pickling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_picklers_take_arrays_by_value(mf: MemoryFile, protocol: int) -> None:
    for name, array in in_pages(mf).items():
        for value in (array, {"a": [array]}):
            result = pickle.loads(pickle.dumps(value, protocol))
            result = result if value is array else result["a"][0]
            assert type(result) is np.ndarray, name
            assert same(result, pickle.loads(pickle.dumps(np.asarray(array), protocol))), name
            assert pages_of(result) is None, name
    assert mf.leases() == []


def test_by_value_is_as_numpy_does_it(mf: MemoryFile) -> None:
    a = mf.array((4, 3))
    for protocol in PROTOCOLS:
        assert pickle.dumps(a, protocol) == pickle.dumps(np.asarray(a), protocol)
    buffers: list[pickle.PickleBuffer] = []
    packet = pickle.dumps(a, 5, buffer_callback=buffers.append)
    assert len(buffers) == 1, "out of band, as protocol 5 has it"
    assert same(pickle.loads(packet, buffers=buffers), a)
    file = io.BytesIO()
    np.save(file, a)
    file.seek(0)
    assert same(np.load(file), a)
    assert same(pickle.loads(a.dumps()), a)


@pytest.mark.parametrize("protocol", [None, *PROTOCOLS])
def test_multiprocessing_takes_arrays_as_their_pages(mf: MemoryFile, protocol: int | None) -> None:
    for name, array in in_pages(mf).items():
        result = there_and_back(array, protocol)
        assert type(result) is type(array), name
        assert same(result, array), name
        assert result.flags.writeable == array.flags.writeable, name
        assert pages_of(result) is not None, name
        if array.size:
            lies_at = array.__array_interface__["data"][0]
            assert result.__array_interface__["data"][0] == lies_at, name
    assert mf.leases() == []


@pytest.mark.parametrize("protocol", [None, *PROTOCOLS])
def test_multiprocessing_takes_other_arrays_as_ever(mf: MemoryFile, protocol: int | None) -> None:
    a = mf.array((4, 3))
    results = {
        "sum": a.sum(),
        "row": a[[1, 2]],
        "product": a @ a.T,
        "class of its own": a.view(SharedArray)[a == 0],
    }
    for name, array in {**elsewhere(), **results}.items():
        result = there_and_back(array, protocol)
        assert type(result) is type(array), name
        assert same(result, array), name
        if protocol is not None:
            usual = pickle.dumps(array, protocol)
            assert bytes(ForkingPickler.dumps(array, protocol)) == usual, name
    assert mf.leases() == []


def test_multiprocessings_pickler_still_hands_out_buffers() -> None:
    buffers: list[pickle.PickleBuffer] = []
    array = np.arange(1000)
    pickler: Any = ForkingPickler
    stream = io.BytesIO()
    pickler(stream, 5, True, buffers.append).dump(array)
    assert len(buffers) == 1
    assert same(pickle.loads(stream.getvalue(), buffers=buffers), array)


def test_a_subclass_stays_what_it_is(mf: MemoryFile) -> None:
    a = mf.array(3).view(Temperatures)
    a[:] = 7
    for result in (pickle.loads(pickle.dumps(a)), there_and_back(a), copy.copy(a)):
        assert type(result) is Temperatures
        assert same(result, a)
    assert type(a + 1) is Temperatures
    masked = np.ma.masked_less(mf.array(3), 1)
    assert there_and_back(masked).mask.tolist() == [True] * 3


class Temperatures(SharedArray):
    pass


def test_what_cannot_be_sent_as_pages_is_sent_by_value() -> None:
    """An array outlives its file, as ordinary memory does."""
    mf = MemoryFile()
    array = mf.array(3)
    array[:] = 5
    plain = np.asarray(array)
    mf.close()
    for one in (array, plain):
        result = there_and_back(one)
        assert type(result) is np.ndarray
        assert result.tolist() == [5, 5, 5]


def test_an_array_is_sent_after_its_allocation_was_released(mf: MemoryFile) -> None:
    pages = mf.allocate(PAGE)
    array = np.frombuffer(pages, np.uint8)
    pages.release()
    result = there_and_back(array)
    result[0] = 9
    assert array[0] == 9
    shared = mf.array(3)
    assert shared.allocation is not None
    shared.allocation.release()
    there_and_back(shared)[1] = 9
    assert shared[1] == 9
    del array, result, shared, pages
    mf.wait_for_reclaim()
    assert mf.segments() == []


# --- to other processes --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_another_process_writes_is_seen(mf: MemoryFile, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    with context.Pool(1) as pool, ProcessPoolExecutor(1, mp_context=context) as executor:
        for call in (
            lambda a: pool.apply(write, (a,)),
            lambda a: executor.submit(write, a).result(),
        ):
            for wrap in (lambda a: a, lambda a: {"array": a}, lambda a: Sample("s", a)):
                for array in (
                    mf.array(8),
                    mf.array((8, 2)).T[0, 2:],
                    np.asarray(mf.array(8)),
                    np.frombuffer(mf.allocate(PAGE)),
                ):
                    assert call(wrap(array)) == type(array).__name__
                    assert array[0] == 99
        a = mf.array((4, 3))
        a[:] = 1
        for function in (double, total, rows):
            for result in (pool.apply(function, (a,)), executor.submit(function, a).result()):
                assert type(result) is type(function(np.asarray(a)))
                assert same(np.asarray(result), np.asarray(function(a)))
        back = pool.apply(view, (a,))
        back[0] = 7
        assert a[1].tolist() == [7, 7, 7]
        pool.close()
        pool.join()
    del a, back, array
    eventually(lambda: mf.leases() == [])


# --- numpy's own types ---------------------------------------------------------------------------

COMPUTED = """
    a+1 | 1-a | -a | a@a.T | a>3 | abs(a) | divmod(a,2) | a[0]@a[0] | a.sum() | a.sum(axis=0)
    a.sum(axis=0,keepdims=True) | a.mean() | a.std() | a.var() | a.any() | a.all() | a.prod()
    a.max() | a.min() | a.argmax() | a.argmax(axis=1) | a.argmin(axis=0) | a.cumsum()
    a.cumprod() | a.copy() | a.copy("F") | a.astype("f4") | a.flatten() | a.T.ravel()
    a.T.reshape(-1) | a.byteswap() | a[[1,2]] | a[a>3] | a[0,0] | a.take(0) | a.take([0,1])
    a.dot(a[0]) | a[0].dot(a[0]) | a.item(0) | a.round() | a.clip(1,2) | a.repeat(2) | a.trace()
    a.imag | a.nonzero() | a.argsort() | a.argpartition(1) | a[0].searchsorted(2)
    a[0].searchsorted([2]) | a.compress([True,False],axis=0) | a.tolist() | np.sum(a)
    np.ptp(a) | np.sort(a) | np.concatenate([a,a]) | np.stack([a,a]) | np.where(a>2,a,0)
    np.zeros_like(a) | np.empty_like(a).shape | np.full_like(a,3) | np.median(a)
    np.median(a,axis=0) | np.unique(a,return_counts=True) | np.roll(a,1) | np.linalg.svd(a)
    np.linalg.norm(a) | np.fft.fft(a) | np.einsum("ij->i",a) | np.modf(a) | np.add.reduce(a)
    np.add.accumulate(a) | np.add.outer(a[0],a[0]) | np.gradient(a) | np.histogram(a)
    np.array(a) | np.copy(a) | np.exp(a) | np.tile(a,2) | np.average(a,axis=0) | np.pad(a,1)
    np.percentile(a,[10,50]) | np.meshgrid(a[0],a[0]) | np.linalg.slogdet(a[:3]*np.eye(3))
    copy.copy(a) | copy.deepcopy(a) | copy.deepcopy([a]) | np.ma.array(a) | np.diff(a)
    np.matmul(a,a.T)
"""


def types_in(value: Any) -> Any:
    return [types_in(item) for item in value] if isinstance(value, (tuple, list)) else type(value)


def test_what_is_computed_is_of_numpys_types(mf: MemoryFile) -> None:
    plain = np.arange(12.0).reshape(4, 3) + 1
    array = mf.array_like(plain)
    names = {"np": np, "copy": copy}
    for expression in COMPUTED.replace("\n", "|").split("|"):
        if expression.strip():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = eval(expression.strip(), {**names, "a": plain})
                result = eval(expression.strip(), {**names, "a": array})
            assert types_in(result) == types_in(expected), expression
            assert str(result) == str(expected), expression
    assert same(array, plain)


def test_views_and_results_in_place_stay_in_pages(mf: MemoryFile) -> None:
    a = mf.array((4, 3))
    for part in (
        a[1:],
        a.T,
        a.reshape(-1),
        a[0],
        a[..., 0],
        a.view("i8"),
        a.diagonal(),
        a.squeeze(),
    ):
        assert type(part) is SharedArray
        assert part.allocation is a.allocation
    b = a
    b += 1
    assert b is a
    assert np.add(a, 1, out=a) is a
    assert a[0].tolist() == [2, 2, 2]
    assert np.sum(np.ones((2, 3)), axis=0, out=a[1]).allocation is a.allocation
    scalar = one = mf.array(())
    scalar += 1
    assert scalar is one
    assert float(one) == 1
    numbers = mf.array(2, complex)
    numbers.imag = 3
    numbers.real[:] = 4
    assert numbers.tolist() == [4 + 3j] * 2


def test_an_array_holds_its_pages(mf: MemoryFile) -> None:
    """Whatever becomes of the handle and the file; so does one that was received."""
    array = mf.array(PAGE, np.uint8)
    received = there_and_back(array)
    array[:] = 7
    assert array.allocation is not None
    for one in (array, received):
        one.allocation.release()
    other = mf.array_like(np.zeros(PAGE, np.uint8))
    assert other.allocation is not None
    assert not other.allocation.range.overlaps(array.allocation.range)
    mf.wait_for_reclaim()
    assert set(array) == set(received) == {7}
    mf.close()
    assert set(array) == set(received) == {7}
    array[:] = 8
    assert set(received) == {8}


def test_an_array_leads_to_its_pages(mf: MemoryFile) -> None:
    a = mf.array((1000, 3))
    assert isinstance(a.allocation, pgalloc.Allocation)
    assert a.allocation.file is mf
    assert a.allocation.nbytes == 6 * PAGE
    a[0, 0] = 3
    assert bytes(a.allocation.view()[:8]) == a[0, :1].tobytes()
    assert a[5:].allocation is a.allocation
    assert np.zeros(3).view(SharedArray).allocation is None


# --- new arrays ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    [
        "S",
        "U",
        "S5",
        str,
        bytes,
        "V",
        "V3",
        "(2,2)f8",
        "M8",
        "M8[s]",
        "?",
        ">i2",
        "f2",
        "S,i4",
        None,
    ],
)
@pytest.mark.parametrize("shape", [3, (), (2, 3), 0, [2, 0]])
def test_dtypes_are_those_of_zeros(mf: MemoryFile, shape: Any, dtype: Any) -> None:
    array, zeros = mf.array(shape, dtype), np.zeros(shape, dtype)
    assert array.dtype == zeros.dtype
    assert array.shape == zeros.shape
    assert array.tobytes() == zeros.tobytes()


def test_what_is_assigned_to_text_stays(mf: MemoryFile) -> None:
    array = mf.array(3, "S")
    array[0] = b"a"
    assert array.tolist() == [b"a", b"", b""]


@pytest.mark.parametrize("dtype", ["O", object, [("x", "O")], "i4,O"])
def test_objects_cannot_lie_in_pages(mf: MemoryFile, dtype: Any) -> None:
    with pytest.raises(OptionError, match="share"):
        mf.array(3, dtype)
    with pytest.raises(OptionError, match="share"):
        mf.array_like(np.zeros(3, dtype))
    with pytest.raises(OptionError, match="share"):
        pgalloc.array([1, 2], dtype=object)


def test_copies_into_pages(mf: MemoryFile) -> None:
    sources: list[Any] = [
        *(array for array in elsewhere().values() if not array.dtype.hasobject),
        *in_pages(mf).values(),
        [[1, 2], [3, 4]],
        range(5),
        3.5,
        "text",
        ["a", "bcd"],
        b"bytes",
        memoryview(b"bytes"),
        [],
        np.float32(2),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.arange(12)[::-2],
        np.array(["2020-01-01"], "M8[D]"),
    ]
    for source in sources:
        for result in (mf.array_like(source), pgalloc.array(source)):
            assert type(result) is SharedArray
            assert same(result, np.asarray(source))
            assert result.flags.writeable
            assert result.allocation is not None
    fortran = mf.array_like(np.asfortranarray(np.ones((3, 4))))
    assert fortran.flags.f_contiguous
    assert mf.array_like(fortran, order="C").flags.c_contiguous


@pytest.mark.parametrize("data", [[1, 2, 300], np.array([1.5, 2.5, 3.5]), ["1", "2", "3"]])
@pytest.mark.parametrize("dtype", ["f4", "i8", ">u2", "S", "U", "S2", "U9", complex, None])
def test_copies_are_converted_as_numpy_converts(mf: MemoryFile, data: Any, dtype: Any) -> None:
    try:
        expected = np.array(data, dtype)
    except (ValueError, TypeError) as error:
        with pytest.raises(type(error)):
            mf.array_like(data, dtype=dtype)
        return
    assert same(mf.array_like(data, dtype=dtype), expected)
    assert same(pgalloc.array(data, dtype=dtype), expected)


def test_a_copy_that_cannot_be_made_leaves_nothing(mf: MemoryFile) -> None:
    with pytest.raises(OutOfMemoryError):
        mf.array_like(np.broadcast_to(np.zeros(()), 2**55))
    with pytest.raises(ValueError, match="invalid literal"):
        mf.array_like(np.array(["x"]), dtype="i4")
    with pytest.raises(RangeError):
        mf.array(-1)
    with pytest.raises(TypeError):
        mf.array_like([1], mode="x", nonsense=True)
    mf.wait_for_reclaim()
    assert mf.segments() == []


# --- numpy and other libraries, there or not ------------------------------------------------------


def test_numpy_is_not_imported() -> None:
    """Nor any library; and multiprocessing's pickler works without numpy."""
    program = (
        "import sys; before = set(sys.modules); sys.modules['numpy'] = None\n"
        "import pgalloc, multiprocessing\n"
        "receiver, sender = multiprocessing.Pipe(False)\n"
        "sender.send(pgalloc.MemoryFile().allocate(4096)); assert receiver.recv().nbytes == 4096\n"
        "sender.send(object()); receiver.recv()\n"
        "assert pgalloc.SharedList([b'a', 1])[1] == 1\n"
        "roots = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(roots - sys.stdlib_module_names - {'__mp_main__', 'numpy', 'pgalloc'}))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


def test_numpy_may_be_imported_later() -> None:
    program = (
        "import sys, pgalloc, multiprocessing\n"
        "mf = pgalloc.MemoryFile(); a = mf.allocate(4096); assert 'numpy' not in sys.modules\n"
        "import numpy; array = numpy.frombuffer(a, 'u1')\n"
        "receiver, sender = multiprocessing.Pipe(False)\n"
        "sender.send(array); receiver.recv()[0] = 7\n"
        "print(array[0])\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.stdout.strip(), result.stderr) == ("7", "")


@pytest.fixture
def library(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module that can be imported, in a package."""
    name = "some_library.reduction"
    (tmp_path / "some_library").mkdir()
    (tmp_path / "some_library" / "__init__.py").touch()
    (tmp_path / "some_library" / "reduction.py").write_text(
        "import os\n"
        "table = {}\n"
        "register = table.__setitem__\n"
        "if 'BROKEN_LIBRARY' in os.environ: raise ImportError('broken')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    imports._finder.actions.pop(name, None)
    for module in ("some_library", name):
        sys.modules.pop(module, None)


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's library is forgotten after it."""
    monkeypatch.setattr(picklers, "_tables", list(picklers._tables))


def load(name: str) -> ModuleType:
    return __import__(name, fromlist=["register"])


@pytest.mark.parametrize("first", [True, False])
def test_a_library_is_told_when_it_is_imported(library: str, tables: None, first: bool) -> None:
    if first:
        load(library)
    imports.after_import(library, lambda module: picklers._tell(module.register))
    module = load(library)
    assert set(module.table) >= {
        pgalloc.Allocation,
        SharedArray,
        pgalloc.Shared,
        pgalloc.SharedList,
    }
    assert module.__spec__ is not None
    assert type(module.__spec__.loader).__module__ != imports.__name__
    assert type(module.__loader__).__module__ != imports.__name__


def test_an_import_that_fails_can_be_tried_again(
    library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[ModuleType] = []
    imports.after_import(library, told.append)
    monkeypatch.setenv("BROKEN_LIBRARY", "1")
    with pytest.raises(ImportError, match="broken"):
        load(library)
    assert told == []
    monkeypatch.delenv("BROKEN_LIBRARY")
    assert told == [load(library)]


def test_a_library_of_another_shape_is_imported_all_the_same(
    library: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(module: ModuleType) -> None:
        raise AttributeError("no such thing")

    imports.after_import(library, fail)
    load(library)
    assert "not as expected" in caplog.text


def test_a_library_that_is_not_there_is_not_found() -> None:
    imports.after_import("no_such_library_at_all", print)
    try:
        with pytest.raises(ModuleNotFoundError):
            load("no_such_library_at_all")
    finally:
        del imports._finder.actions["no_such_library_at_all"]


def test_a_peer_copies_into_the_owners_pages(mf: MemoryFile, spawned: Peer) -> None:
    spawned.do(peers.keep, "a", mf.allocate(PAGE))
    spawned.do(
        peers.run,
        "import numpy as np; kept['copy'] = kept['a'].file.array_like(np.arange(5), dtype='i2')",
    )
    copy = spawned.do(peers.send_back, "copy")
    assert type(copy) is SharedArray
    assert same(copy, np.arange(5, dtype="i2"))
    assert copy.allocation.file is mf
    spawned.do(peers.drop, "a", "copy")


def test_the_base_of_an_array_is_its_allocation(mf: MemoryFile) -> None:
    array = mf.array((4, 4))
    for each in (array, array[1:], array.T, array[1:].reshape(-1)[2:]):
        assert each.base is array.allocation
    assert SharedArray((3,)).base is None
    own = np.zeros(3)
    assert own.view(SharedArray).base is own
