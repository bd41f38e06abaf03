"""Weights in the layouts of other programs: what they say exactly is converted, else refused."""
