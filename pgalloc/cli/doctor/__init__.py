"""``pgalloc doctor``: what does this machine offer, and does what pgalloc needs work on it?

* ``command``: tables or JSON, and the exit status.
* ``model``: everything that is found out. ``pressure``: the part about limits and pressure.
* ``trial``: uses a MemoryFile for real; its outcome decides.
"""
