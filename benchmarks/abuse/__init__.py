"""Runs that are killed, run in pairs and find damage; `__main__` tells all."""
