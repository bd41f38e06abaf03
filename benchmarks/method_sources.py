"""Of every method in the tree from which qbench is imported, what its source is, as JSON.

    PYTHONPATH=TREE/.typetree python -P benchmarks/method_sources.py

The last line is an object by name, `{"source": HASH, "lacks": WHY}`. source: of the method's file
and of all that it builds on, or why the method cannot be used. lacks: why another package's method
cannot be run here, null where it can.
"""

from __future__ import annotations

import json

from qbench.errors import ConfigError
from qbench.external.environments import state
from qbench.registry import declarations, external, method_class, source_hash


def main() -> None:
    """Print the object."""
    sources: dict[str, dict[str, str | None]] = {}
    for name in [*declarations(), *external()]:
        try:
            cls = method_class(name)
            package = getattr(cls, "package", None)
            lacks = None if package is None else state(package).reason
            sources[name] = {"source": source_hash(cls), "lacks": lacks}
        except ConfigError as error:
            sources[name] = {"source": str(error), "lacks": None}
    print(json.dumps(sources))


if __name__ == "__main__":
    main()
