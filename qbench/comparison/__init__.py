"""Cells are compared with each other item by item, from their records and sample files alone."""
