"""Programs that go for the memory limit as hard as they can, and what watches them.

* ``write_through``: a Cache takes many times the limit while another thread holds the GIL.
* ``touch``: unpinned memory is touched as fast as the kernel gives pages.
* ``values``: what is written, and how it is recognized again; ``hog``: who holds the GIL.
* ``without``: how to switch off what is under test.
* ``sampler``: how close the group came to its limit; ``trial``: one run in a group of its own.

The programs run in a group made by ``../limits.py``, and print one JSON object: what they saw.
"""
