"""Cells held against each other item by item, from their records and sample files alone."""
