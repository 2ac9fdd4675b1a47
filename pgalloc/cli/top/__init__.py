"""``pgalloc top``: which pgalloc files does a process have, and how far is its memory limit?

* ``command``: looks once or again and again, until there is nothing to be seen.
* ``target``: which process is meant. ``model``: what procfs says of it; ``huge``: what its page
  tables say. ``terminal`` shows it.
"""
