"""How the keys of a grid may be written in a file, as JSON schema for editors.

The validators that read them are in `qbench.experiment.forms`. Of a schema for several types each
keyword holds for its own, a `pattern` for texts alone; it finds its match anywhere in the text.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, WithJsonSchema
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from qbench.scheme import AS_IT_IS

MOST_WORKERS = 1024  # cells at a time: each is a process
_WHOLE = r"^\s*[+-]?\d[\d_]*(\.0*)?\s*$"
_NUMBER = r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?\s*"
_SWITCH = "^([Tt]rue|[Ff]alse|[Yy]es|[Nn]o|[Oo]n|[Oo]ff|TRUE|FALSE|YES|NO|ON|OFF|[tfynTFYN01])$"
_BITS = r"\s*(0*(1[0-6]|[1-9])|skip)(g(0*[1-9]\d*|channel))?\s*$"
_SIZE = r"^\s*(\d+(\.0+)?|\d+(\.\d+)?\s*[KMGTkmgt][Bb])\s*$"
_SETTING = {"type": "string", "pattern": "^[^.=]+[.][^=]+=."}
_VALUE = {"type": ["string", "number", "boolean"], "pattern": r"[^\s,]"}
_VALUES = {
    "anyOf": [
        _VALUE,
        {
            "type": "array",
            "items": {"type": ["string", "number", "boolean", "null"]},
            "minItems": 1,
        },
    ]
}
_SETTINGS = {
    "type": "object",
    "patternProperties": {
        "^[^.]+[.].": _VALUES,
        "^[^.]+$": {"type": "object", "additionalProperties": _VALUES},
    },
    "additionalProperties": False,
}


def _number_or_text(pattern: str, **limits: int) -> WithJsonSchema:
    """A whole number within limits, or a text with the pattern."""
    schema: dict[str, Any] = {"type": ["integer", "string"], "pattern": pattern}
    return WithJsonSchema(schema | limits)


_Rule = Annotated[str, Field(pattern=rf"\S.*={_BITS}")]
_Bits = Annotated[int | str, _number_or_text(f"^{_BITS}", minimum=1, maximum=AS_IT_IS)]
Names: Any = Annotated[str, Field(pattern=r"[^\s,]")] | list[str]
Numbers: Any = (
    float | Annotated[str, Field(pattern=rf"^[\s,]*{_NUMBER}(,\s*({_NUMBER})?)*$")] | list[float]
)
Rules: Any = _Rule | dict[str, _Bits] | list[_Rule]
Workers: Any = Annotated[int, Field(ge=1, le=MOST_WORKERS)] | Literal["auto"] | None
Size: Any = Annotated[int | str, _number_or_text(_SIZE, minimum=1)] | None
Sets: Any = Annotated[
    Any,
    WithJsonSchema(
        {"anyOf": [_SETTING, _SETTINGS, {"type": "array", "items": _SETTING, "minItems": 1}]}
    ),
]


class InAllForms(GenerateJsonSchema):
    """Numbers and switches may stand in quotes, and no text or list is empty."""

    def int_schema(self, schema: core_schema.IntSchema) -> dict[str, Any]:
        """A whole number."""
        return super().int_schema(schema) | {"type": ["integer", "string"], "pattern": _WHOLE}

    def float_schema(self, schema: core_schema.FloatSchema) -> dict[str, Any]:
        """Any number."""
        pattern = rf"^\s*{_NUMBER}$"
        return super().float_schema(schema) | {"type": ["number", "string"], "pattern": pattern}

    def bool_schema(self, schema: core_schema.BoolSchema) -> dict[str, Any]:
        """True or false, in the words that YAML has for it."""
        types = ["boolean", "integer", "string"]
        return {"type": types, "minimum": 0, "maximum": 1, "pattern": _SWITCH}

    def str_schema(self, schema: core_schema.StringSchema) -> dict[str, Any]:
        """A text."""
        return {"minLength": 1} | super().str_schema(schema)

    def list_schema(self, schema: core_schema.ListSchema) -> dict[str, Any]:
        """A list."""
        return {"minItems": 1} | super().list_schema(schema)
