"""Sharing pages among processes: one owner, and leases.

The process that made a MemoryFile owns its metadata. Others map the same memory and hold leases: as
long as one has a handle on a page, the owner keeps a reference for it. Each peer has a connection
to the owner; the kernel closes it when the peer dies, however it dies, and the owner takes back
what it held. Nothing has a name that could be left behind.

* The owner's side is native: csrc/sharing/broker.h.
* ``protocol``: the messages, as far as Python makes and reads them.
* ``connection``, ``peer``, ``remote``: the peer's, and a forked child's.
* ``transport``: how pages travel in what multiprocessing sends. ``picklers``: which picklers send
  them, ``imports``: also those of libraries. ``unattached``: what stands for pages that could not
  be received. ``pickles``: offers of a pickle that fails. ``arrays``: numpy on top of it.
* ``worker_end``: a worker process waits until what it has sent is claimed.
* ``serving``: sockets with a name. ``leases``: what peers hold.
"""

from pgalloc.sharing import transport, worker_end
from pgalloc.sharing.leases import Lease
from pgalloc.sharing.limits import Limits
from pgalloc.sharing.peer import PeerFile
from pgalloc.sharing.serving import Server, connect

__all__ = ["Lease", "Limits", "PeerFile", "Server", "connect", "transport", "worker_end"]
