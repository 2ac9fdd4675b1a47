"""``pgalloc demo workers``: what does the same data cost when several processes need it?

A list of bytes, ``multiprocessing.shared_memory`` and pgalloc hand the same files to worker
processes; all are measured, killed, and what they left behind is counted.

* ``command``: the arguments, the order of things, and the exit status.
* ``data``: the files and their digests. ``ways``: how they get to the workers.
* ``owner``: the program that loads them and starts workers; ``check``: what a worker does.
* ``crew``: an owner and its workers, from start to end. ``procfs``: what is there of them.
* ``verdict``: what is promised, and whether it was kept. ``terminal`` shows all ways.
"""
