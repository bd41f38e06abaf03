"""Calibration text through a model, block by block, and what is learned from it."""
