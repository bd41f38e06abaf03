"""`make speed` compares with stored runs by ratio to a yardstick that never changes.

Each benchmark takes turns with its yardstick. Before pytest-benchmark compares, a stored run's
times are scaled by how much slower or faster the benchmark's own yardstick was then, so a machine
that is slow today is not a regression. Both are processor times, which do not count while others
run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

TIMES = (
    "min", "max", "mean", "stddev", "median", "iqr", "q1", "q3", "ld15iqr", "hd15iqr", "total",
)  # fmt: skip


@pytest.fixture
def in_turns(benchmark: Any) -> Callable[..., None]:
    """in_turns(work, yardstick, rounds): benchmark `work`, with the yardstick before each round."""

    def run(work: Callable[[], object], yardstick: Callable[[], object], rounds: int = 20) -> None:
        times: list[float] = []

        def before() -> None:
            started = time.process_time()
            yardstick()
            times.append(time.process_time() - started)

        benchmark.pedantic(work, setup=before, rounds=rounds, warmup_rounds=2)
        benchmark.extra_info["yardstick"] = min(times)

    return run


@pytest.hookimpl(tryfirst=True, hookwrapper=True)  # the comparison is in a wrapper, too
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    """Scale the stored runs, just before they are compared."""
    benchmarks = session.config._benchmarksession
    yardsticks = {}
    for benchmark in benchmarks.benchmarks:
        if "yardstick" in benchmark.extra_info:
            yardsticks[benchmark.fullname] = benchmark.extra_info["yardstick"]
    for stored in benchmarks.compared_mapping.values():
        for name, earlier in stored.items():
            if name in yardsticks and "yardstick" in earlier["extra_info"]:
                factor = yardsticks[name] / earlier["extra_info"]["yardstick"]
                stats = earlier["stats"]
                for key in TIMES:
                    stats[key] *= factor
                stats["ops"] /= factor
    yield
