"""A method for each format that a folder can hold."""

from __future__ import annotations

import qbench
from qbench.contracts import Method

METHOD_OF_FORMAT = {"uniform": "rtn", "binary": "alternating", "lattice": "unisvq", "dense": "none"}


def method_of_format(name: str) -> Method:
    """A method that makes weights of the format, without training."""
    settings = {"epochs": 0} if name == "lattice" else {}
    return qbench.get_method(METHOD_OF_FORMAT[name], **settings)
