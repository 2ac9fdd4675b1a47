"""``pgalloc demo oom``: is a Cache alive where a plain dict is killed by the memory limit?

Two processes do the same work, one after the other, each in a memory cgroup with the same limit.

* ``command``: the arguments, where the cgroups come from, and the verdict.
* ``borrowed_group``: the cgroup that is here already, where none can be made.
* ``work``: what both processes do. ``child``: the program that each of them runs.
* ``half``: starts one of them in its cgroup and watches it. ``terminal`` shows both.
"""
