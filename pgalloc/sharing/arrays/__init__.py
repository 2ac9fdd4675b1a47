"""numpy arrays in pages. The one room that needs numpy: it is imported when it is used.

* ``shared_array``: the class. ``making``: new ones. ``travel``: how they reach other processes.
* ``items``: how arrays lie in a SharedList.
"""

from pgalloc.sharing.arrays.making import copy_of, new_array
from pgalloc.sharing.arrays.shared_array import SharedArray
from pgalloc.sharing.arrays.travel import reduce_numpys_own

__all__ = ["SharedArray", "copy_of", "new_array", "reduce_numpys_own"]
