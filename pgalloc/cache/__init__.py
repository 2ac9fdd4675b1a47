"""A cache that shrinks instead of being killed.

* ``keys``: what a key may be, and its bytes in a snapshot.
* ``slabs``: small values that share pages.
* ``entry``: a value; ``values``: what it may be; ``store``: all of them, and which have to go.
* ``changes``: one at a time; ``integrity``: what is true before and after each.
* ``mapping``: :class:`Cache`; ``views``: its items; ``policy``, ``stats``: what it takes and tells.
* ``snapshot``: a cache in an image and back.
* ``serving``: a cache that other processes read.
* ``decorator``: :func:`cached`; ``functions``: what a function is known by; ``flights``: results
  that are being computed.
"""

from pgalloc.cache.decorator import cached
from pgalloc.cache.mapping import Cache
from pgalloc.cache.policy import Policy
from pgalloc.cache.stats import CacheStats

__all__ = ["Cache", "CacheStats", "Policy", "cached"]
