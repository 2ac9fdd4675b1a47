"""A cache that shrinks instead of being killed.

* ``keys``: what a key may be, and its bytes in a snapshot.
* ``slabs``: small values that share pages.
* ``mapping``: :class:`Cache`.
* ``snapshot``: a cache in an image and back.
* ``decorator``: :func:`cached`.
"""

from pgalloc.cache.decorator import cached
from pgalloc.cache.mapping import Cache, CacheStats
from pgalloc.cache.policy import Policy

__all__ = ["Cache", "CacheStats", "Policy", "cached"]
