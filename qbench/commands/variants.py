"""A method that is to be run: by its name, as a file, or as a file was at a git revision."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from qbench.errors import ConfigError
from qbench.files.atomic import write_bytes
from qbench.files.ordinary import is_file

REVISIONS = Path("runs") / "revisions"  # copies of files as they were, by commit and path
DIGITS = 8  # of a commit
# What git refuses, and names that cannot be handed to any program.
NO_ANSWER = (subprocess.CalledProcessError, OSError, ValueError)


@dataclass(frozen=True)
class Variant:
    """text: as it was typed. method: its name, empty where only importing the file tells.

    plugin: the file that defines it, None of a method that is registered anyway.
    """

    text: str
    method: str
    plugin: Path | None = None

    @property
    def target(self) -> str:
        """What its contract checks are to load."""
        return self.method if self.plugin is None else str(self.plugin)

    @property
    def state(self) -> bytes:
        """What changes when the method does."""
        from qbench.registry import method_class, source_hash

        return source_hash(method_class(method_of(self))).encode()


def is_file_of_method(text: str) -> bool:
    """Whether this names a Python file, here or at a revision, and not a run or a baseline."""
    return text.endswith(".py")


def read_variant(text: str) -> Variant:
    """NAME, FILE.py, or REVISION:FILE.py as git has it. ConfigError where there is no such thing.

    A file at a revision is copied, with the commit behind its method's name, and so are the files
    beside it that it imports or names; what it imports of qbench is that of today.
    """
    from qbench.registry import declared

    if not is_file_of_method(text):
        return Variant(text, declared(text).name)
    path = Path(text)
    if is_file(path):
        return Variant(text, _own_method(path)) if _is_own(path) else Variant(text, "", path)
    if ":" in text:
        return _at_revision(text)
    raise ConfigError(
        f"{text} is no file; give a Python file that defines a method, or REVISION:{path.name} "
        "for a file as it was at a git revision"
    )


def read_variant_here(text: str) -> Variant:
    """As `read_variant`; ConfigError for a file outside of the repository that this folder is in.

    Outside of any repository, for one outside of this folder.
    """
    path = Path(text)
    if is_file(path):
        try:
            root = Path(_git("rev-parse", "--show-toplevel").decode().strip())
        except NO_ANSWER:
            root = Path()
        if not path.resolve().is_relative_to(root.resolve()):
            raise ConfigError(
                f"{text} lies outside of {root.resolve()}, and only files in it are run here; "
                f"`qbench regress {text}` takes any file"
            )
    return read_variant(text)


def method_of(variant: Variant) -> str:
    """The name under which it is run; a file is imported.

    ConfigError where it does not define a single method, but for those that it derives from.
    """
    from qbench.registry import load_plugin, method_class

    if variant.plugin is None:
        return variant.method
    classes = {name: method_class(name) for name in load_plugin(variant.plugin)}
    bases = {base for cls in classes.values() for base in cls.__mro__[1:]}
    return _only(variant.text, [name for name, cls in classes.items() if cls not in bases])


def _is_own(path: Path) -> bool:
    """Whether it is a file of the registered methods."""
    from qbench.method_source import module_file

    own = module_file(f"qbench.methods.{path.stem}") if path.stem.isidentifier() else None
    return own is not None and own.resolve() == path.resolve()


def _own_method(path: Path) -> str:
    from qbench.registry import declarations

    module = f"qbench.methods.{path.stem}"
    known = declarations().items()
    names = [name for name, entry in known if getattr(entry, "module", None) == module]
    return _only(str(path), names)


def _only(text: str, names: list[str]) -> str:
    if len(names) != 1:
        raise ConfigError(
            f"{text} defines {len(names)} methods ({', '.join(names) or 'none'}); give a file that "
            "defines one, besides those that it derives from, or the name of a registered method"
        )
    return names[0]


def _at_revision(text: str) -> Variant:
    """The file as git has it, copied to REVISIONS, its method under a name of its own."""
    from qbench.method_source import names_in

    revision, _, path = text.rpartition(":")
    commit = _commit(revision, text)
    try:
        source = _git("cat-file", "blob", f"{commit}:{path}")
    except NO_ANSWER:
        raise ConfigError(
            f"{revision} has no file {path}; `git ls-tree -r --name-only {revision}` lists what it "
            "has, from the repository's root"
        ) from None
    try:
        names, bases = names_in(source)
    except (SyntaxError, ValueError) as error:
        raise ConfigError(
            f"{text} is not Python ({error}); give a revision at which the file can be imported"
        ) from None
    last = {declared or cls: declared for cls, declared in names.items() if cls not in bases}
    name = last[_only(text, list(last))]
    suffix = f"-{commit[:DIGITS]}"
    renamed = "".join(f"{class_name}.name += {suffix!r}\n" for class_name in names)
    folder = REVISIONS / commit[:DIGITS]
    copy = folder / path
    if not copy.resolve().is_relative_to(folder.resolve()):  # of ../mine.py, from a folder below
        copy = folder / copy.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    plugin = write_bytes(copy, source + f"\n\n{renamed}".encode())
    _bring_what_is_its(plugin, commit, path)
    return Variant(text, "" if name is None else name + suffix, plugin)


def _bring_what_is_its(copy: Path, commit: str, path: str) -> None:
    """Beside the copy of a plug-in, the files of its own that it imports or names at a commit."""
    from qbench.plugin_file import module_name
    from qbench.plugin_sources import named_files, own_sources

    folder = path.rpartition("/")[0]
    tree = f"{commit}:{folder}/" if folder else f"{commit}:"
    there = set(_git("ls-tree", "-r", "-z", "--full-tree", "--name-only", tree).split(b"\0"))

    def bring(file: Path) -> bool:
        if not file.is_relative_to(copy.parent):
            return False
        beside = file.relative_to(copy.parent).as_posix()
        if beside.encode(errors="surrogateescape") not in there:
            return False
        if file != copy:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, _git("cat-file", "blob", f"{tree}{beside}"))
        return True

    for source in (copy, *own_sources(copy, module_name(copy), bring)):
        named_files(source, bring)


def _commit(revision: str, text: str) -> str:
    """The full hash of a revision."""
    if not revision or revision.startswith("-"):
        raise ConfigError(f"{text} names no revision; for example HEAD~3:methods/gptq.py")
    try:
        _git("rev-parse", "--show-toplevel")
    except FileNotFoundError:
        raise ConfigError(
            f"git is not installed, so {text} cannot be read; give a file that is here"
        ) from None
    except subprocess.CalledProcessError:
        raise ConfigError(
            f"this folder is in no git repository, so {text} cannot be read; go to the repository "
            "that holds it"
        ) from None
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
    except NO_ANSWER:
        raise ConfigError(
            f"there is no revision {revision!r} in this repository; `git log --oneline` and `git "
            "branch --all` list some"
        ) from None


def _git(*arguments: str) -> bytes:
    """What git says in the working directory."""
    return subprocess.run(["git", *arguments], check=True, capture_output=True).stdout
