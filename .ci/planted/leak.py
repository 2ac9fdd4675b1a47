"""Forgets a few ranges: LeakSanitizer must report them, with pgalloc's code in the stack."""

import ctypes

import pgalloc

forgotten = [pgalloc.FileRange(i, i + 1) for i in range(10)]
for range_ in forgotten:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(range_))
