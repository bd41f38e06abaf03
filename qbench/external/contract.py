"""What a file of `methods/external/` declares: a package, and the methods that it offers.

    PACKAGE = Package("hqq", "half-quadratic quantization", "hqq_worker.py", module="hqq")

    @dataclass(frozen=True)
    class HQQ(External):
        name: ClassVar[str] = "hqq"
        ...
        package: ClassVar[Package] = PACKAGE

Nothing here imports the package, and neither does anything else of ours: it is imported by its
worker, in its own environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from qbench.contracts import Scheme
from qbench.errors import ConfigError

Version = tuple[int, int]  # of Python


@dataclass(frozen=True)
class Package:
    """A package that quantizes, and where it runs.

    name: of its environment (`qbench env create NAME`); its requirements stand in NAME.txt beside
    the file that declares it. about: what it is, for people. worker: the script in `workers/` that
    its environment runs; None where nothing can be run. module: what is imported to see whether an
    environment works. python: the lowest and the highest version that it is installed with.
    unavailable: why nothing can be run, and what to take in its place; None where it can. folder:
    of the requirements and of `workers/`, None for `methods/external/`; a plug-in brings its own.
    """

    name: str
    about: str
    worker: str | None = None
    module: str | None = None
    python: tuple[Version, Version] = ((3, 11), (3, 13))
    unavailable: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class External:
    """A method of another package; its fields are the hyper-parameters that the worker is told.

    package: where it runs. unavailable: why this one of its methods cannot be run, and what to take
    in its place; None where it can. widths: those of the `bits` that the package has, None for all.
    calibrates: whether it sees calibration tokens. group: the group size that its format fixes,
    None where the user chooses. fits_any_row: whether it takes another one by itself where `group`
    does not divide a row. groups: those that may be chosen, None for all. reads: what its worker is
    given as the model, a Hugging Face folder or a GGUF file in full precision.
    """

    package: ClassVar[Package]
    unavailable: ClassVar[str | None] = None
    widths: ClassVar[tuple[int, ...] | None] = None
    calibrates: ClassVar[bool] = False
    group: ClassVar[int | None] = None
    fits_any_row: ClassVar[bool] = False
    groups: ClassVar[tuple[int | None, ...] | None] = None
    reads: ClassVar[Literal["folder", "gguf"]] = "folder"

    def worker_settings(self, scheme: Scheme) -> dict[str, Any]:
        """What the worker is told, JSON-able; ConfigError where the scheme is not served."""
        self.check_bits(scheme)
        self.check_group(scheme)
        return {
            "method": getattr(self, "name", ""),
            "bits": scheme.bits,
            "group_size": scheme.group_size,
            "symmetric": scheme.symmetric,
            "parameters": asdict(self),
        }

    def check_bits(self, scheme: Scheme) -> None:
        """ConfigError where the package has no codes of so many bits."""
        if self.widths is not None and scheme.bits not in self.widths:
            raise ConfigError(
                f"bits={scheme.bits} is none of those that {self.package.name} offers "
                f"({', '.join(map(str, self.widths))}); give one of them by --bits"
            )

    def check_group(self, scheme: Scheme) -> None:
        """ConfigError where the package has no groups of this size."""
        if self.groups is not None and scheme.group_size not in self.groups:
            allowed = ", ".join(str(size or "channel") for size in self.groups)
            raise ConfigError(
                f"group_size={scheme.group_size or 'channel'} is none of those that "
                f"{self.package.name} offers here ({allowed}); give one of them by --group-size"
            )


@dataclass(frozen=True)
class Order:
    """What a worker is to do: the file `order.json`, which is all that it is told.

    model: the unquantized model's folder, or its GGUF file. tokens: the file of the calibration
    tokens, (samples, length) int64 of numpy, or None. output: the folder that it writes into.
    settings: of `External.worker_settings`. device, threads: where to compute.
    """

    model: str
    tokens: str | None
    output: str
    settings: Mapping[str, Any]
    device: str
    threads: int
