"""The house: which room may use which, and how files introduce themselves (design.md)."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "csrc"
PACKAGE = ROOT / "pgalloc"

# Which rooms a room may include: the floors of docs/design.md.
FLOORS = [
    {"base"},
    {"os", "segment", "image"},
    {"pages", "backing", "guard"},
    {"file"},
    {"imageio", "sharing"},
    {"cache"},
    {"binding"},
]
ROOMS = {
    room: {room}.union(*FLOORS[:floor]) for floor, rooms in enumerate(FLOORS) for room in rooms
}
# What a room must not use although it lies below.
NOT = {"image": {"os", "segment"}, "pages": {"os", "image"}, "guard": {"segment", "image"}}
# What the binding may know of the layer that calls the kernel: no system call.
BINDING_OF_OS = {"os/fault_plan.h", "os/thread.h"}

# A .cc without a header of its own name implements a part of this one.
PARTS = {
    "image/decode_back.cc": "image/decode.h",
    "image/decode_extent.cc": "image/decode.h",
    "image/decode_front.cc": "image/decode.h",
    "binding/allocation_pinning.cc": "binding/allocation_object.h",
    "binding/allocation_type.cc": "binding/file_handle.h",
    "binding/hot_calls.cc": "binding/file_handle.h",
    "binding/mapping_type.cc": "binding/file_handle.h",
    "binding/cache_calls.cc": "binding/cache_object.h",
    "binding/cache_type.cc": "binding/cache_object.h",
    "binding/cache_value_type.cc": "binding/cache_object.h",
    "binding/bind_cache.cc": "binding/bind.h",
    "cache/store_calls.cc": "cache/store.h",
    "cache/store_changes.cc": "cache/store.h",
    "cache/store_contents.cc": "cache/store.h",
    "cache/store_leaving.cc": "cache/store.h",
    "cache/store_sharing.cc": "cache/store.h",
    "binding/bind_broker.cc": "binding/bind.h",
    "binding/bind_discards.cc": "binding/bind.h",
    "binding/bind_guard.cc": "binding/bind.h",
    "guard/guard_arming.cc": "guard/guard.h",
    "guard/guard_giving_way.cc": "guard/guard.h",
    "guard/guard_room.cc": "guard/guard.h",
    "sharing/owner_link_forks.cc": "sharing/owner_link.h",
    "sharing/peers_forks.cc": "sharing/peers.h",
    "sharing/peers_listening.cc": "sharing/peers.h",
    "sharing/session_requests.cc": "sharing/session.h",
    "binding/bind_fork.cc": "binding/bind.h",
    "binding/bind_image.cc": "binding/bind.h",
    "binding/bind_image_writer.cc": "binding/bind.h",
    "binding/bind_ledger.cc": "binding/bind.h",
    "binding/bind_memory_file.cc": "binding/bind.h",
    "binding/bind_restore.cc": "binding/bind.h",
    "binding/bind_sharing.cc": "binding/bind.h",
    "binding/bind_testing.cc": "binding/bind.h",
    "binding/module.cc": "binding/bind.h",
}

SOURCES = sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.cc")])
HEADERS = [path for path in SOURCES if path.suffix == ".h"]
MODULES = sorted(PACKAGE.rglob("*.py"))


def for_each(paths: list[Path]) -> Callable[[Callable[[Path], None]], Callable[[], None]]:
    """Apply a check to all paths, in one test, and name those that do not pass."""

    def decorate(check: Callable[[Path], None]) -> Callable[[], None]:
        def test() -> None:
            wrong = []
            for path in paths:
                try:
                    check(path)
                except AssertionError as error:
                    wrong.append(f"{inside(path)}: {str(error).splitlines()[0]}")
            assert not wrong, "\n".join(wrong)

        return test

    return decorate


def inside(path: Path) -> str:
    return str(path.relative_to(CSRC if CSRC in path.parents else ROOT))


def code_of(path: Path) -> str:
    """C++ without comments."""
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def includes(path: Path) -> list[str]:
    return re.findall(r'^#include "([^"]+)"', path.read_text(), flags=re.MULTILINE)


def test_the_rooms_are_all_there() -> None:
    assert {path.name for path in CSRC.iterdir() if path.is_dir()} == set(ROOMS)
    assert len(SOURCES) > 40
    assert len(MODULES) > 15


@for_each(SOURCES)
def test_a_room_uses_only_rooms_below_it(path: Path) -> None:
    room = inside(path).split("/")[0]
    for include in includes(path):
        assert (CSRC / include).is_file(), f"{include} is not written as room/file"
        allowed = ROOMS[room] - NOT.get(room, set())
        assert include.split("/")[0] in allowed, f"{room} must not use {include}"
        if room == "binding" and include.startswith("os/"):
            assert include in BINDING_OF_OS


def units() -> dict[str, set[str]]:
    """What each unit includes: a .cc together with the header of its name."""
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        unit = inside(path).rsplit(".", 1)[0]
        used = {include.rsplit(".", 1)[0] for include in includes(path)}
        graph.setdefault(unit, set()).update(used - {unit})
    return graph


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """Units that include each other in a circle; none if there is no circle."""
    done: set[str] = set()

    def visit(unit: str, way: list[str]) -> list[str]:
        if unit in way:
            return [*way[way.index(unit) :], unit]
        if unit in done:
            return []
        done.add(unit)
        ways = (visit(used, [*way, unit]) for used in sorted(graph.get(unit, ())))
        return next((found for found in ways if found), [])

    return next((found for unit in sorted(graph) if (found := visit(unit, []))), [])


# The parts of one class template, and of one binding header, include each other.
KNOTTED = ("segment/", "binding/")


def test_no_units_include_each_other_in_a_circle() -> None:
    graph = {unit: used for unit, used in units().items() if not unit.startswith(KNOTTED)}
    assert len(graph) > 40
    assert cycle_in(graph) == []
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@for_each(SOURCES)
def test_python_is_known_to_the_binding_only(path: Path) -> None:
    if not inside(path).startswith("binding/"):
        assert not re.search(r"#include <(Python\.h|pybind11|structmember)", path.read_text())


# Calls of the kernel that must go through the table. What stays outside of it asks for constants of
# the machine or of the thread, and cannot usefully fail.
KERNEL_CALLS = re.compile(
    r"::(open|close|unlink|memfd_create|ftruncate|fallocate|fstat|fstatfs|lseek|pwrite|pread|mmap|"
    r"munmap|madvise|mincore|mlock|munlock|fcntl|ioctl|syscall|read|write|poll|accept4?|bind|listen|"
    r"socket|socketpair|sendmsg|recvmsg|send|recv|getsockopt|epoll_\w+|getrandom|pidfd_open)\s*\("
)


@for_each(SOURCES)
def test_only_os_calls_the_kernel(path: Path) -> None:
    if inside(path).startswith("os/"):
        return
    code = code_of(path)
    called = [m.group(1) for m in KERNEL_CALLS.finditer(code) if not _is_member(code, m.start())]
    assert not called, f"{called} must go through os::sys()"


def _is_member(code: str, at: int) -> bool:
    """Whether the :: belongs to Class::name, which is no call of the kernel."""
    return at > 0 and (code[at - 1].isalnum() or code[at - 1] in "_>")


THREADS = {
    "backing/prefault.cc",
    "file/loader.cc",
    "imageio/stream_file.cc",
    "imageio/stream_file.h",
    "file/loader.h",
    "file/reclaimer.cc",
    "file/reclaimer.h",
    "guard/guard.cc",
    "guard/guard.h",
    "guard/guard_arming.cc",
    "guard/guard_room.cc",
    "imageio/image_writer.cc",
    "imageio/image_writer.h",
    "sharing/broker.cc",
    "sharing/broker.h",
    "sharing/owner_link.cc",
    "sharing/owner_link.h",
}
CLOCKS = {
    "base/clock.h",
    "base/mutex.h",
    "binding/bind_broker.cc",
    "binding/bind_image_writer.cc",
    "binding/bind_inl.h",
    "binding/bind_restore.cc",
    "binding/bind_sharing.cc",
    "binding/bind_testing.cc",
    "binding/patience.h",
    "cache/remote_store.cc",
    "cache/store_calls.cc",
    "file/evictables.h",
    "file/file_registry.cc",
    "file/file_state.h",
    "file/loader.cc",
    "imageio/stream_file.cc",
    "imageio/stream_file.h",
    "file/loader.h",
    "file/memory_file.cc",
    "file/memory_file.h",
    "file/allocator.cc",
    "file/part_delay.h",
    "file/reclaimer.cc",
    "file/reclaimer.h",
    "file/registered_file.h",
    "file/release_budget.h",
    "file/unsplit_pages.h",
    "guard/discard_source.h",
    "guard/guard.cc",
    "guard/guard.h",
    "guard/guard_giving_way.cc",
    "guard/guard_room.cc",
    "guard/limits.h",
    "imageio/image_sink.h",
    "imageio/image_writer.h",
    "os/thread.cc",
    "sharing/broker.cc",
    "sharing/connecting.cc",
    "sharing/forks.cc",
    "sharing/offers.cc",
    "sharing/offers.h",
    "sharing/owner_link.cc",
    "sharing/owner_link.h",
    "sharing/owner_link_forks.cc",
    "sharing/payer.cc",
    "sharing/peers.cc",
    "sharing/peers_forks.cc",
}


@for_each(SOURCES)
def test_threads_and_clocks_are_where_they_are_expected(path: Path) -> None:
    code = code_of(path)
    if re.search(r"std::j?thread\b(?!::)|pthread_create", code):
        assert inside(path) in THREADS
    if re.search(r"(steady|system|high_resolution)_clock|clock_gettime|gettimeofday", code):
        assert inside(path) in CLOCKS


@for_each(SOURCES)
def test_no_thread_of_c_gets_a_thread_state(path: Path) -> None:
    """It takes a lock of the interpreter without the GIL: a child forked just then hangs."""
    assert not re.search(r"PyGILState_Ensure|PyThreadState_New|gil_scoped_acquire", code_of(path))


def test_the_lists_of_exceptions_have_no_dead_entries() -> None:
    names = {inside(path) for path in SOURCES}
    assert names >= THREADS | CLOCKS | PARTS.keys() | set(PARTS.values()) | BINDING_OF_OS


@for_each([p for p in SOURCES if p.suffix == ".cc"])
def test_an_implementation_has_a_header_in_its_room(path: Path) -> None:
    header = PARTS.get(inside(path), inside(path.with_suffix(".h")))
    assert (CSRC / header).is_file()
    assert header in includes(path) or header == "binding/bind.h" or inside(path) in PARTS


@for_each(HEADERS)
def test_a_header_says_what_it_is_for(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("// Purpose: "), "the first line is the purpose"
    assert "#pragma once" in text
    introduction = text[: text.index("#pragma once")]
    if inside(path).startswith("binding/"):
        return  # all of it runs with the GIL held: arguments.h says so once
    if re.search(
        r"^\s*(?:template <[^>]*>\s*)?(class|struct) [^;{]*\{", code_of(path), re.MULTILINE
    ):
        assert "Thread safety:" in introduction


# --- Python --------------------------------------------------------------------------------------

# From the ground up; a module uses what is listed before it. A package stands for all in it.
PYTHON_ORDER = [
    ("errors", "enums", "raised", "unpatched"),
    ("named_errors",),
    ("_core", "arguments", "sizes", "uncopyable"),
    ("threads",),
    ("fork",),
    ("pressure",),
    ("_processes",),
    ("accounting", "allocation", "eviction", "backing", "records"),
    ("filling", "snapshot"),
    ("sharing",),
    ("memory_file",),
    ("page_stream",),
    ("cache", "shared"),
    ("shared_list",),
    ("testing",),
    ("",),  # pgalloc/__init__.py
    ("cli", "__main__"),
]
LEVEL = {name: level for level, names in enumerate(PYTHON_ORDER) for name in names}
OPTIONAL = {"click", "rich"}  # in cli only
NUMPYS_OWN = "arrays"  # a package, imported when a user asks for an array
# What finds limits and sources uses only what is pure; these few know more of pgalloc.
PURE = {"arguments", "enums", "errors", "raised", "sizes", "uncopyable", "unpatched"}
PRESSURE_OF_PGALLOC = {
    "default_guard.py": {"fork"},
    "guard.py": {"_core"},
    "monitor.py": {"fork"},
    "watcher.py": {"threads"},
}
# Within the command line, a command may use its own package and what all commands share.
CLI = f"{PACKAGE.name}.cli"
MODULES_OF_CLI = [path for path in MODULES if path.is_relative_to(PACKAGE / "cli")]
COMMANDS = {path.parent.name for path in (PACKAGE / "cli").glob("*/__init__.py")}
CLI_ACROSS = {"app.py": COMMANDS, "demo/command.py": {"oom", "workers"}}
# What uses pgalloc, and knows nothing of the command line.
USERS = [
    path
    for folder in (".ci", "benchmarks", "stress", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not path.match("tests/*/test_cli_*.py")
]
KERNEL_MODULES = {"fcntl", "ctypes", "mmap", "resource", "select", "signal"}
KERNEL_FUNCTIONS = {
    "eventfd",
    "fork",
    "memfd_create",
    "open",
    "pread",
    "pwrite",
    "read",
    "register_at_fork",
    "write",
}


def room_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(module, whether only for types) of every import."""
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = [f"{module}.{a.name}" if module == "pgalloc" else module for a in node.names]
        for name in names:
            yield name, id(node) in for_types


@for_each(MODULES)
def test_a_module_uses_only_modules_below_it(path: Path) -> None:
    room = room_of(path)
    for module, for_types in imported(ast.parse(path.read_text())):
        root, _, rest = module.partition(".")
        if root in OPTIONAL:
            assert room == "cli", f"{module} belongs to the command line"
        assert root != "numpy" or NUMPYS_OWN in path.parts, "numpy is for users"
        if root != "pgalloc":
            continue
        used = rest.split(".")[0]
        used = used if used in LEVEL else ""  # a name of pgalloc itself
        if used == room:
            continue
        assert used != "cli" or room == "__main__", "nothing but __main__ uses the command line"
        if room == "pressure":
            allowed = PURE | PRESSURE_OF_PGALLOC.get(path.name, set())
            assert used in allowed, f"{module} is neither PURE nor in PRESSURE_OF_PGALLOC"
        if not for_types:
            assert LEVEL[used] < LEVEL[room] or used in PYTHON_ORDER[LEVEL[room]], module


@for_each(MODULES)
def test_python_calls_the_kernel_in_few_rooms_only(path: Path) -> None:
    room = room_of(path)
    if room in ("pressure", "_processes", "sharing", "cli"):
        return
    tree = ast.parse(path.read_text())
    assert not KERNEL_MODULES & {name.split(".")[0] for name, _ in imported(tree)}
    called = {
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "os"
    }
    allowed = {"register_at_fork"} if room == "fork" else set()
    assert not called & KERNEL_FUNCTIONS - allowed


@for_each(MODULES_OF_CLI)
def test_a_command_uses_its_own_package_and_what_all_share(path: Path) -> None:
    inside_cli = path.relative_to(PACKAGE / "cli")
    allowed = {inside_cli.parts[0]} | CLI_ACROSS.get(str(inside_cli), set())
    for module, _ in imported(ast.parse(path.read_text())):
        assert module != CLI, "the module is to be named in full"
        if module.startswith(f"{CLI}."):
            used = module.split(".")[2]
            assert used not in COMMANDS - allowed, f"must not import {module}"


@for_each(USERS)
def test_the_command_line_is_used_by_its_own_tests_only(path: Path) -> None:
    """Programs in strings, names of modules to run and to patch included."""
    tree = ast.parse(path.read_text())
    names = re.compile(rf"\b{re.escape(CLI)}\b")
    used = [name for name, _ in imported(tree) if names.search(name)]
    used += [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and names.search(node.value)
    ]
    assert not used, f"what others need goes to a room below: {used}"


def test_every_folder_is_a_package() -> None:
    """Others would be missing from the wheel (tool.setuptools.packages.find in pyproject.toml)."""
    assert {path.parent for path in MODULES} == {
        path.parent for path in PACKAGE.rglob("__init__.py")
    }


@for_each(MODULES)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "no docstring"
