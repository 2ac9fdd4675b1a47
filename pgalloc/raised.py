"""Whether pgalloc has raised an exception, or a signal handler that ran in the middle of it.

A handler may raise anything, also what a call of the kernel raises: TimeoutError is usual. What it
raises is its caller's, and is neither swallowed nor turned into something else.
"""

from __future__ import annotations

# What runs when pgalloc calls its own functions, and native ones, which have no frames.
_ROOMS = frozenset(
    {"pgalloc", "weakref", "_weakrefset", "threading", "os", "posixpath", "contextlib", "numpy"}
)


def is_ours(error: BaseException) -> bool:
    """Whether all that ran when it was raised is pgalloc's, from the frame on that caught it.

    A handler has a frame of its own. To be asked where it was caught. It must not be asked of
    exceptions that callbacks may raise, which have one, too.
    """
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in _ROOMS:
            return False
        trace = trace.tb_next
    return True
