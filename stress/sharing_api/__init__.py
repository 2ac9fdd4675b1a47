"""The parts of ``sharing.py``: the torture of pages that many processes share."""
