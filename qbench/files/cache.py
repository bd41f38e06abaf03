"""Where things lie that can be made again: converted models, compiled kernels."""

from __future__ import annotations

import os
from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """QBENCH_CACHE, or the platform's cache directory."""
    return Path(os.environ.get("QBENCH_CACHE") or user_cache_path("qbench", appauthor=False))
