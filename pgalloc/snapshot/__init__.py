"""Saving a MemoryFile to an image, and bringing it back: the Python side.

``docs/image-format.md`` describes an image. The core reads and writes its bytes; here are the
hooks, file objects, compression, and the threads that need Python.
"""
