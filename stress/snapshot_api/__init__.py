"""The parts of ``snapshots.py``: the torture of saving and restoring."""
