"""What a command says where it fails: one sentence on stderr, and an exit code."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer

from qbench.commands.entry import interrupted
from qbench.commands.options import err, let_go_of
from qbench.errors import ConfigError, QbenchError, readable, reason_of

# Errors of the system that more room, or another place, can mend.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
# What libraries say that could not be loaded, and Python of threads.
SHORT_OF_ROOM = ("failed to map segment", "annot allocate memory", "can't start new thread")


def run_in_words(app: typer.Typer) -> NoReturn:
    """Run the command that is asked, and exit; with a traceback of errors only under --debug."""
    debug = "--debug" in sys.argv
    try:
        _refuse_no_names(sys.argv[1:])
        code = app(standalone_mode=False)  # typer returns the code of an exit, and 130 for Ctrl-C
        sys.stdout.flush()  # a full disk is to be met here
    except QbenchError as error:
        if debug:
            raise
        _complain(str(error))
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except OSError as error:
        if debug:
            raise
        place = error.filename or "the output"
        reason = reason_of(error) if error.errno is None else f"{place}: {error.strerror}"
        advice = "; free space, or choose another place" if error.errno in NO_ROOM else ""
        _complain(f"{reason}{advice} (--debug says where it was met)")
        let_go_of(sys.stdout)
        raise SystemExit(1) from None
    except Exception as error:
        short = _short_of_room(error)
        if debug or not (short or hasattr(error, "format_message")):
            raise
        _complain(short or _with_value(error))
        raise SystemExit(1 if short else 2) from None
    if code == 130:
        _complain(interrupted(sys.argv[1:]))
    raise SystemExit(code if isinstance(code, int) else 0)


def _short_of_room(error: Exception) -> str | None:
    """A sentence for an error that says that the system gives no more memory or threads."""
    if not isinstance(error, MemoryError) and not any(map(str(error).__contains__, SHORT_OF_ROOM)):
        return None
    return (
        f"{reason_of(error)}: memory or processes are limited (`ulimit -a`), or used up; raise the "
        "limit, or end other programs"
    )


def _refuse_no_names(words: Sequence[str]) -> None:
    """ConfigError for a word on the command line that names nothing, or not in text.

    An empty one would be this folder as a path. Bytes that are no UTF-8 can be in the name of a
    file, and not in the JSON that names it.
    """
    for word in words:
        if not word.isascii() and any("\ud800" <= character <= "\udfff" for character in word):
            raise ConfigError(
                f"{word!r} holds bytes that are no text in UTF-8, and records could not name it; "
                "rename the file or folder"
            )
    for before, word in zip(["", *words], words, strict=False):
        if word == "" or re.fullmatch("--[a-z-]+=", word):
            flag = word.removesuffix("=") or before
            name = flag if flag.startswith("-") else "an argument"
            raise ConfigError(f"{name} '' names nothing; give a name, or leave it out")


def _with_value(error: Any) -> str:
    """The message of an error of typer; with the value, where pydantic refused one."""
    message: str = error.format_message()
    if not hasattr(error.__cause__, "errors"):
        return message
    value = error.__cause__.errors()[0]["input"]
    return readable(message.replace("Invalid value for", f"Invalid value {value!r} for", 1))


def _complain(text: str) -> None:
    err.print(f"qbench: {text}", markup=False, highlight=False, soft_wrap=True)
