"""The parts of ``torture.py``: the torture of pgalloc through its Python API."""
