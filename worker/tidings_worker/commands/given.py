"""An event as it is given on the command line."""

import json
import math
import sys
from pathlib import Path
from typing import NoReturn

from tidings import Event
from tidings.errors import ConfigurationError


def event_given(event_type: str, data: str) -> Event:
    """Return the event of a type with these data: JSON, @FILE, or - for standard input. Raises ConfigurationError."""
    try:
        fields = json.loads(text_given(data), parse_constant=_no_number, parse_float=_number)
    except ValueError as error:
        raise ConfigurationError(f"--data is not JSON: {error}") from None
    except RecursionError:
        raise ConfigurationError("--data is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ConfigurationError(f"--data is a JSON {type(fields).__name__}, not an object")
    return Event.of(event_type, fields)


def text_given(data: str) -> str:
    """Return the text that ``--data`` stands for: itself, a file's, or that of standard input."""
    try:
        if data == "-":
            return sys.stdin.buffer.read().decode()
        return Path(data[1:]).read_text(encoding="utf-8") if data.startswith("@") else data
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--data {data}: not UTF-8: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ConfigurationError(f"--data {data}: {error.strerror}") from None


def _number(text: str) -> float:
    """Read a JSON number with a fraction or an exponent; one beyond a float's range would become infinite."""
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number that an event can carry")
