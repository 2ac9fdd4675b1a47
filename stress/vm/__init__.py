"""A small virtual machine in which real cgroup v2 governs pgalloc, wherever this runs.

* ``kernel``: Debian's cloud kernel, from its package; ``qemu``: the emulator, installed if missing.
* ``libraries``: which shared libraries a file needs.
* ``contents``: what lies in the machine: this Python, pgalloc, what else was asked for.
* ``newc``: the archive format that the kernel unpacks into its first file system.
* ``guest``: process 1 in the machine; makes the cgroup, runs the command, reports.
* ``machine``: boots it all and reads the report.

``../vm_v2.py`` is the command.
"""
