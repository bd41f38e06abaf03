"""Writes to registers that a product in flight reads are found in machine code."""

from __future__ import annotations

import sys

import pytest

from places import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from registers_in_flight import overwritten

sys.path.remove(str(ROOT / "benchmarks"))

LOOP = """
        /*0100*/                   {first} ;            /* 0x00000000000079af */
        /*0110*/              @!P0 IMAD R100, R22, R4, RZ ;
        /*0120*/                   WARPGROUP.ARRIVE ;
        /*0130*/                   HGMMA.64x128x16.F32.BF16 R24, R100, gdesc[UR16], R24, gsb0 ;
        /*0140*/                   WARPGROUP.DEPBAR.LE gsb0, {left} ;
        /*0150*/                   HGMMA.64x128x16.F32.BF16 R24, R88, gdesc[UR16], R24, gsb0 ;
        /*0160*/                   WARPGROUP.DEPBAR.LE gsb0, {left} ;
        /*0170*/                   STG.E desc[UR20][R88.64], R91 ;
        /*0180*/               @P5 BRA 0x100 ;
"""


@pytest.mark.parametrize(
    "first, left, count",
    [
        ("LDS.64 R90, [R102+0xc000]", "0x1", 1),
        ("LDS.64 R90, [R102+0xc000]", "0x0", 0),  # every product has ended
        ("LDS.64 R92, [R102+0xc000]", "0x1", 0),  # what none of them reads
        ("LDS.64 R86, [R102+0xc000]", "0x1", 0),
        ("LDS.128 R86, [R102+0xc000]", "0x1", 1),
        ("IADD3 R91, P5, P6, R109, UR22, R90", "0x1", 1),
        ("SEL R3, R88, R89, P0", "0x1", 0),  # reads them
        ("SEL R3, R88, R89, P0", "0x2", 1),  # R100 while the product of the pass before may read it
    ],
)
def test_a_write_before_the_wait(first, left, count):
    lines = overwritten(LOOP.format(first=first, left=left))
    assert len(lines) == count
    if count:
        assert lines[0][5:] in (first, "IMAD R100, R22, R4, RZ")


def test_products_of_shared_memory_read_no_registers():
    text = LOOP.replace("R100, gdesc", "gdesc[UR8], gdesc").replace("R88, gdesc", "gdesc, gdesc")
    assert overwritten(text.format(first="IMAD R88, R22, R4, RZ", left="0x3")) == []
