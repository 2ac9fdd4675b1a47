"""cached: what a function is known by, its arguments, its results, its figures."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from no_keys import NO_KEYS

import pgalloc
from pgalloc import Cache, MemoryFile, cached, testing


@pytest.fixture
def cache() -> Iterator[Cache]:
    with Cache() as made:
        yield made
        testing.verify_cache(made)


CACHE = Cache("1M")


@pytest.fixture(autouse=True, scope="module")
def at_work() -> Iterator[None]:
    """What the Cache of the module needs is there before the tests and after them."""
    CACHE["k"] = b"v"
    yield
    CACHE.close()


@cached(CACHE)
def at_its_name(x: int) -> bytes:
    return b"module %d" % x


class Methods:
    @cached(CACHE, key=lambda self, x: x)
    def method(self, x: int) -> bytes:
        return b"method %d" % x

    @staticmethod
    @cached(CACHE)
    def static(x: int) -> bytes:
        return b"static %d" % x

    @cached(CACHE)
    @staticmethod
    def static_inside(x: int) -> bytes:
        return b"static inside %d" % x

    @classmethod
    @cached(CACHE, key=lambda cls, x: x)
    def of_class(cls, x: int) -> bytes:
        return b"class %d" % x


# --- which function ------------------------------------------------------------------------------


def module_level(code: str, name: str = "made_up") -> dict[str, Any]:
    """The names of a module with this code, as a notebook runs it: again in the same module."""
    module = sys.modules.setdefault(name, type(sys)(name))
    vars(module)["cached"] = cached
    exec(code, vars(module))
    return vars(module)


def different_functions(cache: Cache) -> Iterator[Callable[[int], Any]]:
    """Each of them answers with its own bytes, and has something in common with another one."""
    keep = cached(cache)

    def closure(text: bytes) -> Callable[[int], Any]:
        @cached(cache)
        def load(x: int) -> bytes:
            return text

        return load

    def with_default(text: bytes) -> Callable[[int], Any]:
        def load(x: int, text: bytes = text) -> bytes:
            return text

        return keep(load)

    yield closure(b"closure 1")
    yield closure(b"closure 2")
    yield with_default(b"default 1")
    yield with_default(b"default 2")
    yield keep(lambda x: b"lambda 1")
    yield keep(lambda x: b"lambda 2")
    yield keep(functools.partial(lambda text, x: text, b"partial 1"))
    yield keep(functools.partial(lambda text, x: text, b"partial 2"))

    class Called:
        def __init__(self, text: bytes) -> None:
            self.text = text

        def __call__(self, x: int) -> bytes:
            return self.text

        def method(self, x: int) -> bytes:
            return self.text + b" method"

    for text in (b"object 1", b"object 2"):
        yield keep(Called(text))
        yield keep(Called(text).method)

    def again(function: Any, text: bytes = b" wrapped") -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return bytes(function(*args)) + text

        return wrapper

    def inner(x: int) -> bytes:
        return b"inner"

    yield keep(inner)
    yield keep(again(inner))
    yield keep(again(keep(inner), b" again"))
    for number in range(3):  # redefined in a notebook, in a loop
        text = f"@cached(cache)\ndef f(x): return b'cell {number}'"
        yield _redefined(cache, text)
    for number in range(2):  # the same code, with another default
        yield _redefined(cache, f"@cached(cache)\ndef g(x, y=b'set {number}'): return y")
        mutable = f"@cached(cache)\ndef h(x, y=bytearray(b'mutable {number}')): return y"
        yield _redefined(cache, mutable)
        made = (
            f"def make(y):\n  global i\n  @cached(cache)\n  def i(x): return y\nmake(b'{number}')"
        )
        yield _redefined(cache, made, "i")
        method = f"class B:\n  def m(x): return b'base {number}'\nclass C(B):\n  @staticmethod\n"
        method += "  @cached(cache)\n  def m(x): return __class__.__base__.m(x)\nm = C.m"
        yield _redefined(cache, method, "m")
    for number in range(2):  # the same code and name, other globals
        names = {"cached": cached, "cache": cache, "text": b"globals %d" % number}
        exec("def j(x): return text", {"__name__": "made_up", **names}, names)
        module_level("", "made_up")["j"] = j = keep(
            types.FunctionType(names["j"].__code__, {"__name__": "made_up", **names}, "j")  # type: ignore[attr-defined]
        )
        yield j
    yield at_its_name
    yield Methods.static
    yield Methods.static_inside
    yield functools.partial(Methods.method, None)  # its self
    yield Methods.of_class


def _redefined(cache: Cache, code: str, name: str | None = None) -> Any:
    names = module_level("", "made_up")
    names["cache"] = cache
    exec(code, names)
    return names[name or code.split("def ")[1][0]]


@pytest.mark.parametrize("called", ["when made", "later"])
def test_functions_never_answer_for_each_other(cache: Cache, called: str) -> None:
    made = different_functions(cache)
    functions = [(function, called == "later" or function(7))[0] for function in made]
    for _ in range(2):
        answers = [bytes(function(7)) for function in functions]
        assert len(set(answers)) == len(answers), answers
    shared = [cached(CACHE, key=lambda x: "same")(lambda x, n=n: bytes([n])) for n in range(3)]
    assert [bytes(function(0)) for function in shared] == [b"\0", b"\1", b"\2"]


def test_a_function_is_known_from_its_first_call_to_its_last(cache: Cache) -> None:
    """Before its name is bound, and after it is another's."""
    names = module_level("", "made_up")
    names.update(cache=cache, early=lambda f: (f(1), f)[1])
    code = (
        "def early(f): return (f(1), f)[1]\n@early\n@cached(cache)\ndef f(x):\n  return b'%d' % x"
    )
    exec(code, names)
    first = names["f"]
    assert bytes(first(1)) == b"1"
    key = first.cache_key(1)
    assert key == first.cache_key(1)
    exec(code.replace("b'%d' % x", "b'other'"), names)
    assert bytes(names["f"](1)) == b"other"
    assert first.cache_key(1) == key
    assert bytes(first(1)) == b"1"


def test_a_name_is_the_callers_word(cache: Cache) -> None:
    first = cached(cache, name="load")(lambda x: b"first")
    second = cached(cache, name="load")(lambda x: b"second")
    assert bytes(first(1)) == bytes(second(1)) == b"first"
    assert first.cache_key(1) == second.cache_key(1)  # type: ignore[attr-defined]


def test_methods_are_known_by_their_names() -> None:
    for function, name in (
        (at_its_name, "at_its_name"),
        (Methods.method, "Methods.method"),
        (Methods.static, "Methods.static"),
        (Methods.static_inside, "Methods.static_inside"),
    ):
        who = function.cache_key(*(1,) * (2 if function is Methods.method else 1))[0]
        assert who.startswith(f"{__name__}:{name}#"), who
    assert Methods.of_class.cache_key(Methods, 1)[0].startswith(f"{__name__}:Methods.of_class#")
    assert bytes(Methods().method(3)) == b"method 3"
    assert bytes(Methods().static_inside(3)) == bytes(Methods.static_inside(3))
    assert bytes(Methods.of_class(4)) == bytes(Methods().of_class(4)) == b"class 4"


def test_a_module_that_is_reloaded(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    source = "import pgalloc, {0} as t\n@pgalloc.cached(t.SHARED)\ndef f(x): return b'{1}'\n"
    monkeypatch.setattr(sys.modules[__name__], "SHARED", cache, raising=False)
    path = tmp_path / "reloaded_module.py"
    path.write_text(source.format(__name__, "before"))
    module = importlib.import_module("reloaded_module")
    old = module.f
    assert bytes(old(1)) == b"before"
    key = old.cache_key(1)
    importlib.reload(module)
    assert module.f is not old
    assert module.f.cache_key(1) == key, "the same code"
    path.write_text("# two lines\n\n" + source.format(__name__, "before"))
    importlib.reload(module)
    assert module.f.cache_key(1) == key, "wherever it is in the file"
    path.write_text(source.format(__name__, "after!"))
    importlib.reload(module)
    assert bytes(module.f(1)) == b"after!"
    assert bytes(old(1)) == b"before"
    del sys.modules["reloaded_module"]


SCRIPT = """
import sys, pgalloc
image, seen = sys.argv[1:]
text = {text!r}
caches, calls = [], []
restore = lambda file, data: caches.append(pgalloc.Cache.from_snapshot(file, data, name="c"))
try:
    file = pgalloc.MemoryFile.restore(image, hooks={{"c": restore}})
    cache, = caches
except FileNotFoundError:
    file = pgalloc.MemoryFile()
    cache = pgalloc.Cache(file=file, name="c")
@pgalloc.cached(cache)
def f(x, flags=frozenset({{"a", "b", "c", "d"}})):
    calls.append(x)
    return text if x in {{"one", "two", "three"}} else None
@pgalloc.cached(cache)
class C:
    pass
g = pgalloc.cached(cache)(lambda x: calls.append("lambda") or text)
named = pgalloc.cached(cache, name="named")(lambda x: calls.append("named") or text)
print(bytes(f("one")), f("four"), bytes(g(1)), bytes(named(1)), calls)
file.save(image)
"""


def test_programs_that_share_a_snapshot(tmp_path: Path) -> None:
    """The second run of a program finds its results; another program does not find them."""

    def run(script: Path | None, text: bytes) -> str:
        code = SCRIPT.format(text=text)
        if script is not None:
            script.write_text(code)
        program = ["-c", code] if script is None else [str(script)]
        done = subprocess.run(
            [sys.executable, *program, str(tmp_path / "image"), ""],
            capture_output=True,
            text=True,
            timeout=50,
            check=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(pgalloc.__file__).parents[1])},
        )
        return done.stdout.strip()

    one, two = tmp_path / "one.py", tmp_path / "two.py"
    assert run(one, b"1") == "b'1' None b'1' b'1' ['one', 'four', 'lambda', 'named']"
    assert run(one, b"1") == "b'1' None b'1' b'1' ['lambda']"
    assert run(two, b"2") == "b'2' None b'2' b'1' ['one', 'four', 'lambda']"
    assert run(None, b"3") == "b'3' None b'3' b'1' ['one', 'four', 'lambda']"
    assert run(None, b"4") == "b'4' None b'4' b'1' ['one', 'four', 'lambda']"
    assert run(one, b"5") == "b'1' None b'5' b'1' ['lambda']", "its code is the same"


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", NO_KEYS, ids=lambda value: type(value).__name__)
def test_arguments_that_are_no_keys(cache: Cache, value: Any) -> None:
    """Whatever was called before: a TypeError that says what to do."""
    calls: list[Any] = []
    f = cached(cache)(lambda *x, **y: calls.append(x) or b"result")
    for _ in range(2):
        for use in (lambda: f(value), lambda: f(x=value), lambda: f.cache_key(value)):  # type: ignore[attr-defined]
            with pytest.raises(TypeError, match="key="):
                use()
        assert calls == []
        for key in (1, "a", b"a", (1, 1), (1, 2), ("a", ("a",))):
            f(key)
        calls.clear()
    made = cached(cache, key=lambda x: value)(lambda x: b"result")
    with pytest.raises(TypeError, match="key="):
        made(1)
    assert bytes(cached(cache, key=repr)(lambda x: b"by repr")(value)) == b"by repr"


def test_arguments_have_their_places(cache: Cache) -> None:
    f: Any = cached(cache)(lambda *args, **kwargs: repr((args, kwargs)).encode())
    uses: list[Any] = [
        lambda: f(),
        lambda: f(1),
        lambda: f((1,)),
        lambda: f("1"),
        lambda: f(b"1"),
        lambda: f(1, 2),
        lambda: f((1, 2)),
        lambda: f(a=1),
        lambda: f(("a", 1)),
        lambda: f((("a", 1),)),
        lambda: f(1, self=2, key=3, args=4),
    ]
    answers = [bytes(use()) for use in uses]
    assert len(set(answers)) == len(uses)
    assert [bytes(use()) for use in uses] == answers
    assert bytes(f(b=1, a=2)) == bytes(f(a=2, b=1))


@pytest.mark.parametrize(
    "function",
    [None, 3, "f", functools.partialmethod(len), property(len)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_function(cache: Cache, function: Any) -> None:
    with pytest.raises(TypeError, match="callable"):
        cached(cache)(function)


def test_generators_are_refused(cache: Cache) -> None:
    def items(x: int) -> Iterator[bytes]:
        yield b""

    async def items_async(x: int) -> Any:
        yield b""

    class Items:
        def __call__(self, x: int) -> Iterator[bytes]:
            yield b""

    for function in (items, items_async, functools.partial(items, 1), Items()):
        with pytest.raises(TypeError, match="generator"):
            cached(cache)(function)


def test_options_are_checked_when_they_are_given(cache: Cache) -> None:
    options: list[dict[str, Any]] = [
        *({"expire": True}, {"expire": "1"}, {"tag": 1.5}, {"name": 1}, {"result": str}),
        *({"wait": 1}, {"key": "x"}),
    ]
    for option in options:
        with pytest.raises(TypeError):
            cached(cache, **option)
    with pytest.raises(ValueError, match="expire"):
        cached(cache, expire=0)


# --- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [memoryview, bytes])
def test_none_is_a_result(cache: Cache, result: Any) -> None:
    calls: list[int] = []

    @cached(cache, result=result, tag="t")
    def find(x: int) -> bytes | None:
        calls.append(x)
        return b"" if x else None

    for _ in range(3):
        assert find(0) is None
        assert bytes(find(1)) == b""
    assert calls == [0, 1]
    assert cache.pop(find.cache_key(0), None) is not None  # type: ignore[attr-defined]
    assert find(0) is None
    assert calls == [0, 1, 0]
    cache.evict_tag("t")
    assert find(0) is None
    assert calls == [0, 1, 0, 0]


def test_what_looks_like_none_is_not_taken_for_it(cache: Cache) -> None:
    f = cached(cache, name="f")(lambda x: None)
    f(1)
    kept = bytes(cache[f.cache_key(1)])  # type: ignore[attr-defined]
    g = cached(cache, name="g")(lambda x: kept)
    assert bytes(g(1)) == bytes(g(1)) == kept


def test_results_as_bytes(cache: Cache) -> None:
    data = np.arange(5000, dtype="u1")[::2]
    for make in (lambda: b"x" * 9000, lambda: bytearray(b"small"), lambda: data, lambda: b""):
        f = cached(cache, result=bytes)(make)
        g = cached(cache)(make)
        for _ in range(2):
            assert type(f()) is bytes
            assert type(g()) is memoryview
            assert f() == bytes(g()) == memoryview(make()).tobytes()
            assert g().readonly


@pytest.mark.parametrize("value", ["text", 7, [b"x"], np.array([None]), object()])
def test_results_that_are_no_bytes(cache: Cache, value: Any) -> None:
    f = cached(cache)(lambda: value)
    for _ in range(2):
        with pytest.raises(TypeError, match="bytes"):
            f()
    assert len(cache) == 0


def test_a_result_that_does_not_fit() -> None:
    with Cache("1M") as cache:
        calls: list[int] = []
        f = cached(cache)(lambda x: calls.append(x) or bytes(x))
        for length in (2 << 20, 100):
            assert bytes(f(length)) == bytes(f(length)) == bytes(length)
        assert calls == [2 << 20, 2 << 20, 100]
        long = "k" * (2 << 20)
        by_key = cached(cache, key=lambda: long, result=bytes)(lambda: b"x")
        assert by_key() == b"x"


def test_an_exception_is_not_kept(cache: Cache) -> None:
    calls: list[int] = []

    @cached(cache)
    def f(x: int) -> bytes:
        calls.append(x)
        if len(calls) < 3:
            raise RuntimeError(len(calls))
        return b"at last"

    for number in (1, 2):
        with pytest.raises(RuntimeError, match=str(number)):
            f(1)
    assert bytes(f(1)) == bytes(f(1)) == b"at last"
    assert len(calls) == 3


# --- figures -------------------------------------------------------------------------------------


def test_cache_info_and_cache_clear() -> None:
    with Cache("1M") as cache:
        f = cached(cache, name="f")(lambda x: b"f" * x)
        g: Any = cached(cache, name="g")(lambda x: None)
        cache["own"] = cache[("f", "own")] = b"its caller's"
        for use in (f, g):
            for x in (1, 1, 2, 1):
                use(x)
            assert use.cache_info()[:3] == (2, 2, 1 << 20)  # type: ignore[attr-defined]
            assert use.cache_info().currsize == cache.currsize  # type: ignore[attr-defined]
        before = cache.stats()
        g.cache_clear()
        assert g.cache_info()[:2] == (0, 0)
        assert (cache.stats().hits, cache.stats().misses) == (before.hits, before.misses)
        assert len(cache) == 4
        assert f.cache_info().hits == 2  # type: ignore[attr-defined]
        g(1)
        assert g.cache_info()[:2] == (0, 1)
        f.cache_clear()  # type: ignore[attr-defined]
        assert set(cache) == {"own", g.cache_key(1)}


def test_cache_clear_forgets_what_is_being_computed(cache: Cache) -> None:
    calls: list[int] = []

    @cached(cache)
    def f(x: int) -> bytes:
        calls.append(x)
        if len(calls) == 1:
            f.cache_clear()  # type: ignore[attr-defined]
        return b"%d" % len(calls)

    assert bytes(f(1)) == b"1"
    assert len(cache) == 0
    assert bytes(f(1)) == bytes(f(1)) == b"2"


# --- a coroutine function, alone -----------------------------------------------------------------


def test_a_coroutine_function(cache: Cache) -> None:
    calls: list[int] = []

    class Called:
        async def __call__(self, x: int) -> bytes:
            return await load(x)

    async def load(x: int) -> bytes:
        calls.append(x)
        await asyncio.sleep(0)  # time: lets others run
        return b"%d" % x

    for function in (load, functools.partial(load), Called()):
        f: Any = cached(cache, result=bytes)(function)
        assert asyncio.iscoroutinefunction(f)
        assert [asyncio.run(f(n)) for n in (1, 1, 2)] == [b"1", b"1", b"2"]
        assert calls == [1, 2]
        assert f.cache_info()[:2] == (1, 2)
        calls.clear()

    async def nothing(x: int) -> None:
        calls.append(x)

    f = cached(cache)(nothing)
    assert asyncio.run(f(1)) is asyncio.run(f(1)) is None
    assert calls == [1]
    with pytest.raises(TypeError, match="key="):
        asyncio.run(f(1.5))


# --- forks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", ["before", "with a miss under way"])
def test_a_forked_child_finds_what_its_parent_has_computed(fork: str) -> None:
    calls: list[int] = []
    with Cache() as cache:

        @cached(cache)
        def f(x: int) -> bytes:
            calls.append(x)
            if x == 5 and len(calls) == 1:
                pids.append(os.fork())
            return b"%d" % x

        @cached(cache, result=bytes)
        async def g(x: int) -> bytes:
            return b"%d" % x

        pids: list[int] = []
        assert bytes(f(3 if fork == "before" else 5)) in (b"3", b"5")
        if not pids:
            pids.append(os.fork())
        if pids[-1] == 0:
            status = 1
            try:
                del calls[:]
                assert [bytes(f(n)) for n in (3, 3, 7)] == [b"3", b"3", b"7"]
                assert calls == ([7] if fork == "before" else [3, 7])
                assert [asyncio.run(g(n)) for n in (1, 1)] == [b"1", b"1"]
                f.cache_key(1)  # type: ignore[attr-defined]
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pids[-1], 0)[1]) == 0
        del calls[:]
        assert bytes(f(7)) == b"7"
        assert calls == [], "the child's results are there"


def test_without_its_owner_each_call_computes(tmp_path: Path) -> None:
    program = """
import sys, pgalloc, ctypes
cache = pgalloc.Cache("8M")
server = cache.serve(sys.argv[1])
print("ready", flush=True)
ctypes.PyDLL(None).pause()
"""
    path = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        calls: list[int] = []
        with Cache.connect(path) as cache:

            @cached(cache, result=bytes)
            def f(x: int) -> bytes:
                calls.append(x)
                return b"%d" % x

            assert [f(1), f(1), f(2)] == [b"1", b"1", b"2"]
            assert calls == [1, 2]
            owner.kill()
            owner.wait()
            assert [f(1), f(3), f(3)] == [b"1", b"3", b"3"]
            assert calls == [1, 2, 3, 3]
            with pytest.raises(pgalloc.OwnerGoneError):
                cache["k"] = b"v"


def test_two_caches(cache: Cache) -> None:
    with Cache() as other, MemoryFile() as file, Cache(file=file) as third:
        functions = [
            cached(c)(lambda x, n=n: bytes([n])) for n, c in enumerate((cache, other, third))
        ]
        for _ in range(2):
            assert [bytes(f(1)) for f in functions] == [b"\0", b"\1", b"\2"]
        assert len(cache) == len(other) == len(third) == 1
