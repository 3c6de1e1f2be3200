"""Where a rule stands: its file and line, for whoever reads a cause, a message or a report."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple


class Place(NamedTuple):
    """A line of a file, counted from 1. As text it is short: the file's name without its folders."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line}"


def place_of_caller() -> Place:
    """Return where the function that asks was called from."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame and frame.f_back
    return Place("?", 0) if frame is None else Place(frame.f_code.co_filename, frame.f_lineno)


def name_and_place(function: Callable[..., Any]) -> tuple[str, Place]:
    """Return a function's full name, and where it is defined."""
    plain: Any = inspect.unwrap(function.func if isinstance(function, partial) else function)
    plain = getattr(plain, "__func__", plain)  # of a method
    if not inspect.isfunction(plain):
        plain = type(plain).__call__
    code = plain.__code__
    return f"{plain.__module__}.{plain.__qualname__}", Place(code.co_filename, code.co_firstlineno)
