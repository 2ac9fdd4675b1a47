"""Programs under test: run them under a memory limit, and ask the kernel how much they take.

Not public: for ``pgalloc demo``, and for ``stress/`` and ``benchmarks/`` in the repository.

* ``memory_group``: makes a memory cgroup with a limit and runs programs in it.
* ``memory``: how much memory a process has, what it shares counted in parts.
"""
