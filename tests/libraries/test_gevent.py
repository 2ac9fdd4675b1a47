"""Programs that gevent has patched: a thread of pgalloc that waits does not stop the program."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAD = """
import gevent.monkey
gevent.monkey.patch_all()
import multiprocessing, os, subprocess, sys, tempfile
import gevent, numpy, pgalloc
turns = [0]
def turn():
    while True:
        gevent.sleep(0.01)  # time: a turn
        turns[0] += 1
gevent.spawn(turn)
folder = tempfile.mkdtemp()
"""

OWNER = """
def work(pages):
    pages.view()[0] = 9
if __name__ == "__main__":
    pages = pgalloc.MemoryFile().allocate(4096)
    child = multiprocessing.get_context("spawn").Process(target=work, args=(pages,))
    child.start()
    while child.exitcode is None:
        gevent.sleep(0.01)  # time: it polls
    assert child.exitcode == 0 and pages.view()[0] == 9
"""

SERVED_CACHE = """
PEER = '''
import gevent.monkey
gevent.monkey.patch_all()
import gevent, pgalloc, sys
reader = pgalloc.Cache.connect(sys.argv[1])
def read():
    for _ in range(50):
        assert bytes(reader.get("key")) == b"value" * 1000 and reader.get("none") is None
        gevent.sleep(0)  # time: none: the others' turn
gevent.joinall([gevent.spawn(read) for _ in range(10)], raise_error=True)
'''
cache = pgalloc.Cache("4M")
cache["key"] = b"value" * 1000
with cache.serve(folder + "/cache") as server:
    subprocess.run([sys.executable, "-c", PEER, server.path], check=True)
"""

EVICTABLE_USER = """
class User:
    asked = 0
    def evict(self, range):
        gevent.sleep(0.01)  # time: a callback that waits
        self.asked += 1
user = User()
with pgalloc.MemoryFile() as file:
    file.mark_evictable(user, pgalloc.EvictableRange(0, 100))
    gevent.sleep(0.1)  # time: turns of others
    file.start_evictions()
    assert file.wait_for_evictions(60) and user.asked == 1
"""

IMAGE_IN_THE_BACKGROUND = """
with pgalloc.MemoryFile() as file:
    pages = file.allocate(16 << 20)
    numpy.asarray(pages)[:] = numpy.random.default_rng(1).integers(0, 4, 16 << 20, "u1")
    expected = bytes(pages.view())
    file.save(folder + "/image", compression="zstd")
with pgalloc.MemoryFile.restore(folder + "/image", background=True) as file:
    gevent.sleep(0.1)  # time: turns of others
    assert file.wait_loaded(60)
    (segment,) = file.segments()
    assert bytes(file.map_range(pgalloc.FileRange(segment.start, segment.end))) == expected
"""

MONITOR = """
with pgalloc.pressure.Monitor() as monitor:
    monitor.subscribe(print)
    gevent.sleep(0.2)  # time: turns of others
"""

SUBSCRIBER = """
told = []
def tell(event):
    told.append(event.level)
    gevent.sleep(0.1)  # time: a callback that waits
source = pgalloc.pressure.ManualSource()
with pgalloc.pressure.Monitor(sources=[source]) as monitor:
    unsubscribe = monitor.subscribe(tell)
    for level in "low", "critical":
        source.signal(level)
        while level not in told:
            gevent.sleep(0.01)  # time: it polls
    unsubscribe()  # waits for the callback
    source.signal("low")
    gevent.sleep(0.1)  # time: enough for a callback, were there one
assert told == ["low", "critical"], told
"""


@pytest.mark.parametrize(
    "program", [OWNER, SERVED_CACHE, EVICTABLE_USER, IMAGE_IN_THE_BACKGROUND, MONITOR, SUBSCRIBER]
)
def test_other_greenlets_go_on(program: str, tmp_path: object) -> None:
    script = f"{tmp_path}/program.py"
    with open(script, "w") as file:
        file.write(HEAD + program + "\nif __name__ == '__main__': assert turns[0] > 3, turns\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
