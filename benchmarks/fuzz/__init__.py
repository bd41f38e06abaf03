"""Damaged models, records, grids and data, one forked process for each; `__main__` tells all."""
