"""Writes one byte too many in a block of Python's allocator: development mode must end this."""

import ctypes

python = ctypes.pythonapi
python.PyMem_Malloc.restype = ctypes.c_void_p
block = ctypes.c_void_p(python.PyMem_Malloc(ctypes.c_size_t(8)))
ctypes.memset(block, 0, 9)
python.PyMem_Free(block)
