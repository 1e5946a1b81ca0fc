"""Measurements beside peers, in the same run on the same machine: ``python -m bench``. Ratios count, not seconds."""
