"""What every part of a record is: frozen, and strict about its keys and numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[float, Field(ge=0, le=1e15)]  # of bytes, seconds or items, and per second
Bits = Annotated[float, Field(ge=0, le=1e6)]  # per weight
Count = Annotated[int, Field(ge=0, le=10**18)]
Deviation = Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of a score, in its own unit


class Frozen(BaseModel):
    """Refuses unknown keys and assignments, and survives a JSON round trip."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, serialize_by_alias=True
    )
