"""Arrays in pages in the hands of libraries, with the real ones: the job ``libraries`` of CI.

That no copy was made is shown by writing in the other process, and looking here.
"""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import multiprocess
import numpy as np
import pandas
import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from sklearn.base import BaseEstimator
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from torch.utils.data import DataLoader, Dataset

import pgalloc
from pgalloc import MemoryFile
from pgalloc.sharing.arrays import SharedArray

pytestmark = pytest.mark.leaks_allowed  # loky's workers stay


@pytest.fixture(scope="module", autouse=True)
def no_workers_stay() -> Iterator[None]:
    yield
    get_reusable_executor().shutdown(wait=True)


def write(array: Any, at: int) -> tuple[int, str]:
    array[at] = at + 1
    return os.getpid(), type(array).__name__


# --- joblib and scikit-learn ---------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["loky", "multiprocessing"])
@pytest.mark.parametrize("max_nbytes", ["1M", None])
def test_joblib_takes_pages(mf: MemoryFile, backend: str, max_nbytes: str | None) -> None:
    """Small arrays, and those that joblib would put into a file."""
    for length in (10, 1 << 20):
        array = mf.array(length)
        parallel = joblib.Parallel(n_jobs=2, backend=backend, max_nbytes=max_nbytes)
        results = parallel(joblib.delayed(write)(array[5:], at) for at in range(4))
        assert {kind for _, kind in results} == {"SharedArray"}
        assert os.getpid() not in {pid for pid, _ in results}
        assert array[5:9].tolist() == [1, 2, 3, 4]


def double(array: Any) -> Any:
    return array * 2


def rest(array: Any) -> Any:
    return array[1:]


def test_what_joblib_returns(mf: MemoryFile) -> None:
    array = mf.array_like([1, 2, 3])
    results = joblib.Parallel(n_jobs=2)(
        joblib.delayed(function)(array) for function in (double, np.sum, rest)
    )
    assert [type(result) for result in results] == [np.ndarray, np.int64, SharedArray]
    assert results[0].tolist() == [2, 4, 6]
    results[2][0] = 9
    assert array.tolist() == [1, 9, 3]


def first(thing: Any) -> Any:
    return bytes(thing[0])


def test_joblib_takes_the_other_classes(mf: MemoryFile) -> None:
    items = pgalloc.SharedList([b"a", b"b"], file=mf)
    pages = mf.allocate(4096)
    results = joblib.Parallel(n_jobs=2)(
        [
            joblib.delayed(first)(items),
            joblib.delayed(bytes)(pages),
            joblib.delayed(pgalloc.Shared.get)(pgalloc.share({"a": 1}, file=mf)),
        ]
    )
    assert results == [b"a", bytes(4096), {"a": 1}]


def test_scikit_learn_takes_pages(mf: MemoryFile) -> None:
    rng = np.random.default_rng(1)
    plain = rng.normal(size=(400, 5))
    target = (plain[:, 0] > 0).astype(int)
    features, labels = mf.array_like(plain), mf.array_like(target)
    model: Any = LogisticRegression()
    expected = cross_val_score(model, plain, target, n_jobs=1)
    assert cross_val_score(model, features, labels, n_jobs=2).tolist() == expected.tolist()
    search = GridSearchCV(Ridge(), {"alpha": [0.1, 1.0]}, n_jobs=2).fit(features, plain[:, 1])
    assert search.best_params_ == {"alpha": 0.1}
    model = pickle.loads(pickle.dumps(LogisticRegression().fit(features, labels)))
    assert model.predict(features[:5]).shape == (5,)


class Writer(BaseEstimator):  # type: ignore[misc]
    """Its scorer writes to an array that it was made with."""

    def __init__(self, array: Any = None) -> None:
        self.array = array

    def fit(self, X: Any, y: Any) -> Writer:  # noqa: N803
        return self

    def score(self, X: Any, y: Any) -> float:  # noqa: N803
        self.array[int(X[0, 0])] = os.getpid()
        return 1.0

    def __sklearn_clone__(self) -> Writer:
        return self  # scikit-learn's clone() copies parameters


def test_scikit_learns_workers_write_to_the_same_pages(mf: MemoryFile) -> None:
    marks = mf.array(10, int)
    features = mf.array_like(np.arange(10.0).reshape(10, 1))
    cross_val_score(Writer(marks), features, features[:, 0], n_jobs=2, cv=5)
    written = set(marks.tolist()) - {0}
    assert written
    assert os.getpid() not in written


@pytest.mark.parametrize("first", ["pgalloc", "joblib", "loky inside"])
def test_the_order_of_imports_does_not_matter(first: str, tmp_path: Path) -> None:
    imports = {
        "pgalloc": "import pgalloc\nmf = pgalloc.MemoryFile()\na = mf.array(3)\nimport joblib\n",
        "joblib": "import joblib, pgalloc\nmf = pgalloc.MemoryFile()\na = mf.array(3)\n",
        "loky inside": (
            "import joblib.externals.loky.backend.reduction, joblib, pgalloc\n"
            "mf = pgalloc.MemoryFile()\na = mf.array(3)\n"
        ),
    }
    program = tmp_path / "program.py"
    program.write_text(
        imports[first] + "import operator\n"
        "joblib.Parallel(n_jobs=2)("
        "joblib.delayed(operator.setitem)(a, at, at + 1) for at in range(3))\n"
        "print(a.tolist())\n"
    )
    result = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=120)
    assert (result.stdout.strip(), result.stderr) == ("[1.0, 2.0, 3.0]", "")


def test_joblibs_files_and_hashes(mf: MemoryFile, tmp_path: Path) -> None:
    array = mf.array_like(np.arange(10.0))
    joblib.dump({"a": array}, tmp_path / "file")
    assert joblib.load(tmp_path / "file")["a"].tolist() == array.tolist()
    joblib.dump(array, tmp_path / "compressed", compress=3)
    assert joblib.load(tmp_path / "compressed").tolist() == array.tolist()
    assert joblib.hash(array) == joblib.hash(array.view())
    total = joblib.Memory(tmp_path / "cache", verbose=0).cache(np.sum)
    assert total(array) == total(array) == 45


# --- multiprocess --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_multiprocess_takes_pages(mf: MemoryFile, method: str) -> None:
    array = mf.array(10)
    with multiprocess.get_context(method).Pool(1) as pool:
        pool.apply(lambda a: a.__setitem__(0, 7), (array,))
        pool.apply(lambda a: a.__setitem__(1, 8), (np.asarray(array),))
        assert array[:2].tolist() == [7, 8]
        result = pool.apply(lambda a: a * 2, (array,))
        assert type(result) is np.ndarray
        assert result[:2].tolist() == [14, 16]
        assert pool.apply(lambda a: bytes(a), (mf.allocate(4096),)) == bytes(4096)
        pool.close()
        pool.join()


def test_multiprocess_may_be_imported_later() -> None:
    program = (
        "import pgalloc\nmf = pgalloc.MemoryFile(); a = mf.array(3)\n"
        "import multiprocess\n"
        "if __name__ == '__main__':\n"
        "    with multiprocess.get_context('fork').Pool(1) as pool:\n"
        "        pool.apply(lambda a: a.__setitem__(0, 7), (a,))\n"
        "    print(a[0])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout.strip(), result.stderr) == ("7.0", "")


# --- by value ------------------------------------------------------------------------------------


def test_cloudpickle_and_pandas_pickle_by_value(mf: MemoryFile) -> None:
    array = mf.array_like(np.arange(4.0))
    assert pickle.loads(cloudpickle.dumps(array)).tolist() == [0, 1, 2, 3]
    assert pickle.loads(cloudpickle.dumps(lambda: array.sum()))() == 6
    for frame in (
        pandas.DataFrame({"x": array}, copy=False),
        pandas.DataFrame(mf.array_like(np.ones((3, 2))), copy=False),
        pandas.DataFrame({"x": np.asarray(array), "y": ["a", "b", "c", "d"]}),
    ):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            pandas.testing.assert_frame_equal(pickle.loads(pickle.dumps(frame, protocol)), frame)
        stream = io.BytesIO()
        frame.to_pickle(stream)
        stream.seek(0)
        pandas.testing.assert_frame_equal(pandas.read_pickle(stream), frame)
    series = pandas.Series(array, copy=False)
    assert series.sum() == 6
    assert pickle.loads(pickle.dumps(series)).tolist() == [0, 1, 2, 3]
    assert mf.leases() == []


def test_frames_travel_with_their_pages(mf: MemoryFile) -> None:
    from multiprocessing.reduction import ForkingPickler

    frame = pandas.DataFrame({"x": mf.array_like(np.arange(4.0))}, copy=False)
    pandas.testing.assert_frame_equal(pickle.loads(bytes(ForkingPickler.dumps(frame))), frame)
    assert mf.leases() == []


def test_torch_takes_arrays(mf: MemoryFile) -> None:
    array = mf.array_like(np.arange(4.0))
    stream = io.BytesIO()
    torch.save(torch.from_numpy(array), stream)
    stream.seek(0)
    assert torch.load(stream).tolist() == [0, 1, 2, 3]
    assert torch.from_numpy(array).data_ptr() == array.ctypes.data
    with torch.multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(write, (array, 1))
        pool.close()
        pool.join()
    assert array[1] == 2


class Rows(Dataset[Any]):
    """Rows of an array in pages, and a list of texts; each row says which process read it."""

    def __init__(self, rows: Any, texts: pgalloc.SharedList, read: Any) -> None:
        self.rows, self.texts, self.read = rows, texts, read

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> Any:
        assert type(self.rows) is SharedArray
        self.read[at] = os.getpid()
        return self.rows[at], int(bytes(self.texts[at]))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_data_loader_takes_pages(mf: MemoryFile, method: str) -> None:
    """Its workers read the pages themselves; what they write is seen here: nothing is copied."""
    rows = mf.array_like(np.arange(64.0).reshape(16, 4))
    texts = pgalloc.SharedList([b"%d" % number for number in range(16)], file=mf)
    read = mf.array(16, np.int64)
    loader = DataLoader(
        Rows(rows, texts, read), batch_size=4, num_workers=2, multiprocessing_context=method
    )
    batches = list(loader)
    assert torch.cat([values for values, _ in batches]).tolist() == rows.tolist()
    assert torch.cat([numbers for _, numbers in batches]).tolist() == list(range(16))
    assert len(set(read.tolist())) == 2
    assert os.getpid() not in read.tolist()
    texts.release()


# --- pickles that fail ---------------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not this one")


def _by_joblibs_pool(thing: Any) -> None:
    joblib.pool.CustomizablePickler(io.BytesIO()).dump(thing)


@pytest.mark.parametrize(
    "dumps",
    [
        joblib.externals.loky.backend.reduction.dumps,
        multiprocess.reduction.ForkingPickler.dumps,
        _by_joblibs_pool,
    ],
)
def test_what_a_failed_pickle_has_offered_is_withdrawn(mf: MemoryFile, dumps: Any) -> None:
    for thing in (mf.allocate(pgalloc.PAGE_SIZE), mf.array(10)):
        with pytest.raises(ValueError, match="not this one"):
            dumps([thing, Unpicklable()])
        assert mf.leases() == []
        dumps([thing])
        assert mf.drop_unclaimed() == pgalloc.PAGE_SIZE
