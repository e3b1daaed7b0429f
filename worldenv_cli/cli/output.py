"""What a command prints: results as text or as one JSON document, and every error as one line with an exit code."""

import json
import math
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from ..errors import UserError


@contextmanager
def progress_elsewhere(json: bool, quiet: bool) -> Iterator[None]:
    """Progress beside a JSON document goes to stderr, with --quiet nowhere."""
    if not json and not quiet:
        yield
        return
    from ..progress import voice

    with voice("quiet" if quiet else "stderr"):
        yield


def print_json(value) -> None:
    """The one JSON document of a command. What is not finite becomes null."""
    import numpy as np

    def plain(value):
        if isinstance(value, dict):
            return {str(key): plain(inner) for key, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(inner) for inner in value]
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, np.generic):
            return plain(value.item())
        return value if value is None or isinstance(value, (bool, int, str)) else str(value)

    print(json.dumps(plain(value), indent=2, ensure_ascii=False))


@contextmanager
def errors_in_one_line(debug: bool) -> Iterator[None]:
    """Every way to fail as one line on stderr and an exit code: 2 a mistake of the user's, 130 interrupted, 1 ours."""
    try:
        yield
    except (typer.Exit, BrokenPipeError):
        raise
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = _message(error, debug)
        print(message, file=sys.stderr)
        raise typer.Exit(code) from error


def _message(error: BaseException, debug: bool) -> tuple[str, int]:
    from ..atomic import disk_full_message, is_disk_full, os_error_message

    if isinstance(error, KeyboardInterrupt):
        return "interrupted: run the same command again and it continues from the last checkpoint; with --force anew", 130
    if isinstance(error, UserError):
        return f"error: {' '.join(str(error).splitlines())}", 2
    if is_disk_full(error):
        return f"error: {disk_full_message(Path(getattr(error, 'filename', None) or '.'))}", 2
    if (text := os_error_message(error)) is not None:
        return f"error: {text}", 2
    text = " ".join(str(error).split())
    hint = "" if debug else "; run again with --debug for the traceback"
    return f"internal error: {type(error).__name__}{': ' if text else ''}{text}{hint}", 1
