"""``pgalloc demo``: does the library do its job with real files, and leave nothing behind?

It loads every file below a path into pages, checks, evicts, reloads, saves, restores and releases.

* ``command``: the arguments, the exit status, and which demo is meant.
* ``model``: the steps, one after another. ``slots``: one file in them; ``reading``: its bytes on
  disk; ``index``: what the disk said, kept in pages too; ``checkers``: worker processes that look
  at the same pages.
* ``snapshot``: the steps over an image. ``catalogue``: what its hook says; ``restore``: the new
  process that reads it; ``outcome``: what that process answers.
* ``report``: what was found out. ``terminal`` and ``html_page`` show it; ``page_map`` is the
  picture of the file that both draw, ``html_map`` and ``html_style`` are parts of the page.
"""
