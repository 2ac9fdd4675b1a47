"""The broker: one thread of an owner that answers its peers.

It starts when something is shared for the first time, and ends when nothing is any more: no
offer, no peer, no server. The socket it listens on by itself has an abstract name, which the kernel
forgets with the process, however that ends.

Thread safety: any thread. ``lock`` guards offers, sessions and listeners; it is held for one step
of one request at a time, never while a peer is waited for.

Invariants:
  1. No peer is waited for: what one does not read waits in its channel, which is not read
     meanwhile.
  2. An unauthenticated channel stays open for at most GREETING_MAX_S, and there are at most
     UNAUTHENTICATED_MAX of them: the newest.
  3. In a forked child every descriptor of the parent's broker is closed at once: peers learn of an
     owner's death by its last descriptor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from pgalloc import _core, fork
from pgalloc.allocation import Allocation
from pgalloc.errors import SharingError
from pgalloc.sharing import protocol
from pgalloc.sharing.channel import GREETING_MAX_S, Channel, Listener
from pgalloc.sharing.offers import UNCLAIMED_MAX_S, Offers
from pgalloc.sharing.protocol import Op, ProtocolError
from pgalloc.sharing.session import Answer, Scope, Session
from pgalloc.sharing.tokens import Address, Token

UNAUTHENTICATED_MAX = 64
_ACCEPTS_AT_ONCE = 16
_IDLE_S = 0.2  # before it ends
_CREDENTIALS = struct.Struct("3i")
_KIND = socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC

_log = logging.getLogger("pgalloc")


class Broker:
    """One for each process: :data:`broker`."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.lock = threading.RLock()
        self.offers = Offers()
        self._channels: dict[int, Channel] = {}  # by descriptor
        self._listeners: dict[int, Listener] = {}  # by descriptor
        self._own_listener: Listener | None = None
        self._address = Address(
            b"\0pgalloc-%d-%s" % (os.getpid(), os.urandom(8).hex().encode()),
            os.urandom(protocol.NONCE_BYTES),
        )
        self._selector: selectors.BaseSelector | None = None
        self._wake = -1  # an eventfd
        self._thread: threading.Thread | None = None
        self._parked = False
        self._stopping = False
        # While this process has no descriptor left for another peer.
        self._accept_paused_until: float | None = None

    # --- what the owner asks for -----------------------------------------------------------------

    def offer(self, pages: Allocation) -> Token:
        """A token for a handle, which this takes over."""
        with self.lock:
            self._ensure_running()
            nonce = self.offers.add(pages, os.getpid(), os.getuid())
            return Token(self._address, nonce)

    def claim(self, token: Token) -> Allocation | None:
        """The handle of one of this process's own tokens; None if it is another's."""
        with self.lock:
            if token.address != self._address:
                return None
            pages = self.offers.claim(token.nonce)
            self._poke()
            return pages

    def drop_unclaimed(self, file_id: int, seconds: float) -> int:
        """Drop offers that were not claimed for so long. The bytes of their pages."""
        with self.lock:
            nbytes = self.offers.drop_older(seconds, file_id)
            self._poke()
            return nbytes

    def add_child(self, sock: socket.socket, session: Session) -> None:
        """A forked child, connected already; ``sock`` is taken over."""
        with self.lock:
            sock.setblocking(False)
            self._ensure_running()
            self._add_channel(Channel(sock, session, greeted=True))

    def add_listener(self, sock: socket.socket, scope: Scope) -> Listener:
        """Accept peers from a listening socket, which stays the caller's."""
        with self.lock:
            sock.setblocking(False)
            listener = Listener(sock, scope)
            self._ensure_running()
            self._listeners[sock.fileno()] = listener
            self._register(sock, selectors.EVENT_READ)
            self._poke()
            return listener

    def remove_listener(self, listener: Listener) -> None:
        """Accept no more peers from it; those that are connected stay."""
        with self.lock:
            descriptor = listener.socket.fileno()
            if self._listeners.get(descriptor) is listener:
                self._unregister(listener.socket)
                del self._listeners[descriptor]
                self._poke()

    def sessions(self) -> list[Session]:
        """The sessions of all peers that are connected now."""
        with self.lock:
            return [channel.session for channel in self._channels.values() if channel.greeted]

    # --- the thread ------------------------------------------------------------------------------

    def _ensure_running(self) -> None:
        fork.register(self)
        if self._selector is None:
            if self._wake < 0:
                self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            selector = selectors.DefaultSelector()
            selector.register(self._wake, selectors.EVENT_READ)
            self._selector = selector
        if self._own_listener is None:
            sock = socket.socket(socket.AF_UNIX, _KIND)
            sock.bind(self._address.name)
            sock.listen(128)
            self._own_listener = self._listeners[sock.fileno()] = Listener(sock, Scope())
            self._register(sock, selectors.EVENT_READ)
        self._start()
        self._poke()

    def _start(self) -> None:
        if self._thread is not None or self._parked:
            return
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="pgalloc-broker", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            self._thread = None
            raise

    def _poke(self) -> None:
        if self._wake >= 0:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._wake, 1)

    def park(self) -> None:
        """Stop the thread and wait until it is gone."""
        with self.lock:
            self._parked = self._stopping = True
            thread = self._thread
            self._poke()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            if thread.native_id is not None:
                _core.wait_until_thread_is_gone(thread.native_id)

    def resume(self) -> None:
        """Undo park()."""
        with self.lock:
            self._parked = False
            if self._selector is not None:
                self._start()

    def reset_in_child(self) -> None:
        """For :mod:`pgalloc.fork`: nothing to do yet, leave_to_parent() comes a moment later."""

    def leave_to_parent(self) -> tuple[Address, list[Any]]:
        """In a forked child: drop the parent's broker. Its address, and what it held for others.

        The references of that are counted for this process, too. So it is to be kept until this
        process can give them back.
        """
        for listener in self._listeners.values():
            listener.socket.close()
        for channel in self._channels.values():
            channel.close_descriptors()
        # Another thread may be in the middle of _ensure_running() or _shut_down(), and is not here.
        if self._selector is not None:
            self._selector.close()
        if self._wake >= 0:
            os.close(self._wake)
        address, held = self._address, [self.offers, self._channels]
        self._reset()
        return address, held

    def _run(self) -> None:
        idle_since: float | None = None
        while True:
            with self.lock:
                if self._stopping:
                    self._thread = None
                    return
                idle_since = self._idle_since(idle_since)
                if idle_since is not None and time.monotonic() >= idle_since + _IDLE_S:
                    self._shut_down()
                    self._thread = None
                    return
                selector, timeout = self._selector, self._timeout(idle_since)
            assert selector is not None
            ready = selector.select(timeout)
            for key, events in ready:
                with self.lock:
                    self._handle(key.fd, events)
            with self.lock:
                for channel in list(self._channels.values()):
                    if channel.steps is not None:
                        self._attempt(channel, Channel.step)
                self._tidy()

    def _idle_since(self, before: float | None) -> float | None:
        if self._channels or self.offers or len(self._listeners) > 1:
            return None
        return time.monotonic() if before is None else before

    def _shut_down(self) -> None:
        assert self._selector is not None
        for listener in self._listeners.values():
            listener.socket.close()
        self._listeners.clear()
        self._own_listener = None
        self._selector.close()
        self._selector = None
        # What is closed has no name any more, or a child that is forked now would close it again.
        wake, self._wake = self._wake, -1
        os.close(wake)

    def _timeout(self, idle_since: float | None) -> float | None:
        if any(channel.steps is not None for channel in self._channels.values()):
            return 0.0
        waits = [GREETING_MAX_S for channel in self._channels.values() if not channel.greeted]
        if idle_since is not None:
            waits.append(_IDLE_S)
        if self._accept_paused_until is not None:
            waits.append(max(0.0, self._accept_paused_until - time.monotonic()))
        oldest = self.offers.seconds_to_next()
        if oldest is not None:
            waits.append(oldest)
        return min(waits, default=None)

    def _tidy(self) -> None:
        now = time.monotonic()
        self.offers.drop_older(UNCLAIMED_MAX_S)
        unauthenticated = [channel for channel in self._channels.values() if not channel.greeted]
        for channel in unauthenticated:
            if now - channel.since > GREETING_MAX_S:
                self._drop(channel)
        if self._accept_paused_until is not None and now >= self._accept_paused_until:
            self._accept_paused_until = None
            for listener in self._listeners.values():
                self._register(listener.socket, selectors.EVENT_READ)

    # --- connections -----------------------------------------------------------------------------

    def _register(self, sock: socket.socket, events: int) -> None:
        if self._selector is not None and sock.fileno() not in self._selector.get_map():
            self._selector.register(sock, events)

    def _unregister(self, sock: socket.socket) -> None:
        if self._selector is not None and sock.fileno() in self._selector.get_map():
            self._selector.unregister(sock)

    def _handle(self, descriptor: int, events: int) -> None:
        if descriptor == self._wake:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
        elif descriptor in self._listeners:
            self._accept(self._listeners[descriptor])
        elif descriptor in self._channels:
            channel = self._channels[descriptor]
            if channel.unsent is not None:
                self._attempt(channel, Channel.send_again)
            elif channel.steps is None:
                self._attempt(channel, self._receive)

    def _attempt(self, channel: Channel, act: Callable[[Channel], None]) -> None:
        """Do a step for one peer. If it fails, only this peer is dropped."""
        try:
            act(channel)
            self._watch(channel)
        except ConnectionError:
            self._drop(channel)
        except ProtocolError as error:
            _log.warning("a peer (pid %d) was dropped: %s", channel.session.pid, error)
            self._drop(channel)
        except Exception:
            _log.exception("a peer (pid %d) was dropped", channel.session.pid)
            self._drop(channel)

    def _watch(self, channel: Channel) -> None:
        """What a peer has not read yet comes before what it may ask next."""
        events = selectors.EVENT_READ if channel.unsent is None else selectors.EVENT_WRITE
        if self._selector is not None and self._selector.get_key(channel.socket).events != events:
            self._selector.modify(channel.socket, events)

    def _accept(self, listener: Listener) -> None:
        for _ in range(_ACCEPTS_AT_ONCE):
            try:
                sock, _address = listener.socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                # No descriptor is left. The listeners stay readable: do not poll them for a while.
                _log.warning("a peer cannot be let in: %s", error)
                self._accept_paused_until = time.monotonic() + 0.1
                for other in self._listeners.values():
                    self._unregister(other.socket)
                return
            if len(self._channels) >= _channels_max():
                sock.close()
                continue
            sock.setblocking(False)
            pid, uid, _gid = _CREDENTIALS.unpack(
                sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            session = Session(self.offers, listener.scope, pid, uid)
            self._add_channel(Channel(sock, session, greeted=False))
            unauthenticated = [
                channel for channel in self._channels.values() if not channel.greeted
            ]
            if len(unauthenticated) > UNAUTHENTICATED_MAX:
                self._drop(unauthenticated[0])

    def _add_channel(self, channel: Channel) -> None:
        self._channels[channel.socket.fileno()] = channel
        self._register(channel.socket, selectors.EVENT_READ)

    def _drop(self, channel: Channel) -> None:
        descriptor = channel.socket.fileno()
        if self._channels.get(descriptor) is not channel:
            return
        self._unregister(channel.socket)
        del self._channels[descriptor]
        channel.steps = None
        channel.close()

    def _receive(self, channel: Channel) -> None:
        packet = channel.receive()
        if packet is None:
            return
        if not channel.greeted or packet.kind == Op.HELLO:
            channel.greet(packet, self._address.secret)
        elif packet.kind == Op.FORK:
            channel.begin(packet.number, self._fork(channel))
        else:
            channel.begin(packet.number, channel.session.answer(packet.kind, packet.payload))

    def _fork(self, channel: Channel) -> Generator[Answer | None]:
        if len(self._channels) >= _channels_max():
            raise SharingError(f"{len(self._channels)} peers are too many")
        ours, theirs = socket.socketpair(socket.AF_UNIX, _KIND)
        with theirs:
            try:
                self._add_channel(Channel(ours, channel.session.fork(), greeted=True))
            except BaseException:
                ours.close()
                raise
            yield Answer(b"", (theirs.detach(),))


def _channels_max() -> int:
    """Half of the descriptors this process may have are for others."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(soft // 2, 8)


broker = Broker()
