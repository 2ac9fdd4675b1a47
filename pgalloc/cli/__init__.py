"""The command line, from the extra ``cli``: ``pgalloc demo``, ``top``, ``doctor``, and more.

``main`` is the entry point. This module imports nothing but the standard library, so that without
click and rich it can say what to install.

Each command has a package: ``demo``, ``oom`` (``pgalloc demo oom``), ``workers`` (``pgalloc demo
workers``), ``doctor``, ``top``; ``images`` has ``inspect`` and ``verify``. There, ``command`` only
parses and decides the exit status; the work is in the modules beside it. All may use what is here:

* ``app``: the list of commands.
* ``params``: conversions of arguments. ``units``: amounts as people read them.
* ``files``: which files a demo loads.
* ``live_table``, ``progress_bar``: what moves on a terminal.
"""

from __future__ import annotations

import sys

_EXTRA = {"click", "rich"}


def main() -> None:
    """Runs the command line and exits; status 2 if the extra is not installed."""
    try:
        from pgalloc.cli.app import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print(f"pgalloc: no module {error.name!r}: pip install 'pgalloc[cli]'", file=sys.stderr)
        raise SystemExit(2) from None
    for stream in (sys.stdout, sys.stderr):
        # A character that the terminal's encoding lacks must not end a run.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        cli(prog_name="pgalloc")
    except OSError as error:
        # Commands report what is theirs; what gets here is a full disk under standard output.
        print(f"pgalloc: {error}", file=sys.stderr)
        raise SystemExit(1) from None
