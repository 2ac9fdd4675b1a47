"""``pgalloc inspect`` and ``pgalloc verify``: what does an image hold, and is all of it sound?

* ``inspect_command``, ``verify_command``: the two commands.
* ``params``: their argument IMAGE, and why an image cannot be read.
* ``summary``: the sums over an image, also as JSON. ``tables`` shows them.
"""
