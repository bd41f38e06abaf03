"""Where the repository stands, and where the real data sets may stand beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL_DATA = ROOT.parent / "shared" / "data"
NO_REAL_DATA = "the folder ../shared/data with the real data sets is not there"
needs_real_data = pytest.mark.skipif(not REAL_DATA.is_dir(), reason=NO_REAL_DATA)
