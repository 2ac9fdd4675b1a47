"""``python -m benchmarks.crowded``: how long one peer waits for the owner while another has much.

A request and its answer, allocate and release, and 1 MiB handed over, each alone, beside a peer
that has 10,000 ranges unpinned and 50,000 offers on their way, and while that one dies. Each
beside a packet over a bare pair of sockets to a thread and back, in the same run. Percentiles, in
microseconds.
"""

from __future__ import annotations

import argparse
import socket
import threading
import time
from multiprocessing.reduction import DupFd
from typing import Any

import pgalloc
from benchmarks import in_crowd
from benchmarks.peers import Peer


def _row(name: str, seconds: list[float]) -> None:
    times_us = sorted(1e6 * each for each in seconds)
    p50, p99 = (times_us[int(len(times_us) * share)] for share in (0.5, 0.99))
    print(f"{name:<44} {p50:>10.1f} {p99:>10.1f} {times_us[-1]:>10.1f}", flush=True)


def _bare(peer: Peer, count: int) -> list[float]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def answer() -> None:
        while packet := ours.recv(64):
            ours.send(packet)

    thread = threading.Thread(target=answer)
    thread.start()
    with ours, theirs:
        times: list[float] = peer.ask(in_crowd.packets, DupFd(theirs.fileno()), count)
        ours.shutdown(socket.SHUT_RDWR)
        thread.join()
    return times


def _hand_over(peer: Peer, file: pgalloc.MemoryFile, count: int) -> list[float]:
    times = []
    with file.allocate(1 << 20, mode=pgalloc.AllocationMode.ALLOCATE_AND_COMMIT) as pages:
        for _ in range(count):
            begin = time.perf_counter()
            peer.ask(in_crowd.first_byte, pages)
            times.append(time.perf_counter() - begin)
    return times


def _rows(when: str, peer: Peer, file: pgalloc.MemoryFile, pages: Any, count: int) -> None:
    _row(f"a request and its answer, {when}", peer.ask(in_crowd.requests, pages, count))
    _row(f"allocate and release, {when}", peer.ask(in_crowd.pairs, pages, count))
    _row(f"1 MiB handed over, {when}", _hand_over(peer, file, count // 20))
    _row("  a bare pair of sockets", _bare(peer, count))


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=4000, help="of requests")
    parser.add_argument("--unpinned", type=int, default=10_000)
    parser.add_argument("--offers", type=int, default=50_000)
    options = parser.parse_args()
    print(f"{'microseconds':<44} {'p50':>10} {'p99':>10} {'longest':>10}")
    peer, crowd = Peer(), Peer()
    with pgalloc.MemoryFile() as file, file.allocate(pgalloc.PAGE_SIZE) as pages:
        _rows("alone", peer, file, pages, options.count)
        crowd.ask(in_crowd.hold, pages, options.unpinned, options.offers)
        _rows("beside the crowd", peer, file, pages, options.count)
        dies = threading.Timer(0.05, crowd.close)  # time: in the middle of what is measured
        dies.start()
        times = peer.ask(in_crowd.requests, pages, 2 * options.count)
        _row("a request and its answer, while it dies", times)
        dies.join()
        begin = time.perf_counter()
        file.drop_unclaimed()
        print(f"{'its offers dropped, all':<44} {1e6 * (time.perf_counter() - begin):>10.1f}")
    peer.close()


if __name__ == "__main__":
    main()
