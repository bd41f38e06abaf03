"""The calibration: text goes through a model block by block, and gives statistics and losses."""
