"""Contract checks: what every method and every kernel promises, and proof that it keeps it.

`verdict` says how an outcome is reported. `methods` has the list of checks; their samples are in
`samples` and `tiny_models`, what they watch in `tour` and `arguments`, and outside of a method in
`qbench.surroundings`. `isolation` runs them in a process of their own, `worker` is that process.
Nothing here is imported by the rest.
"""

from qbench.checks.verdict import Broke, NotApplicable, Verdict

__all__ = ["Broke", "NotApplicable", "Verdict"]
