"""`qbench check FILE`: all that the file defines is checked, methods and kernels."""

from __future__ import annotations

import os

import pytest

from qbench.checks import isolation
from qbench.checks import kernels as kernel_checks
from qbench.checks.verdict import Verdict
from qbench.commands.main import main
from qbench.kernels import registry as kernel_registry

BOTH = """
from dataclasses import dataclass, replace
from typing import ClassVar

from qbench.kernels.dequantized import KERNEL
from qbench.methods.rtn import RTN


@dataclass(frozen=True)
class Mine(RTN):
    name: ClassVar[str] = "method-of-both"


MINE = replace(KERNEL, name="kernel-of-both", automatic=False)
del KERNEL
"""


def test_a_file_in_another_encoding_is_a_sentence(tmp_path, command):
    file = tmp_path / "latin.py"
    file.write_bytes(b"NAME = '\xe9'  # qbench.kernels\n")
    code, out, err = command("check", file)
    assert (code, out) == (2, "") and "raised SyntaxError on import" in err, err


def test_a_file_with_a_method_and_a_kernel_has_both_checked(tmp_path, monkeypatch, capsys):
    # What the plug-in registers is forgotten with the test.
    monkeypatch.setattr(kernel_registry, "_known", kernel_registry.all_kernels())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "both.py").write_text(BOTH)
    seen = []

    def check_isolated(target, time_limit):
        seen.append(os.path.basename(target))
        yield Verdict("method-of-both", "check_of_a_method", "ok")

    def check_kernel(name):
        seen.append(name)
        yield Verdict(name, "check_of_a_kernel", "ok")

    monkeypatch.setattr(isolation, "check_isolated", check_isolated)
    monkeypatch.setattr(kernel_checks, "check_kernel", check_kernel)
    monkeypatch.setattr("sys.argv", ["qbench", "check", "both.py"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert seen == ["kernel-of-both", "both.py"]
    assert "kernel-of-both" in kernel_registry.all_kernels()
    printed = capsys.readouterr().out
    assert "ok    kernel-of-both  check_of_a_kernel" in printed
    assert "ok    method-of-both  check_of_a_method" in printed
