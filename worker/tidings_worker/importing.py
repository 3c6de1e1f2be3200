"""Importing a service's module: whatever is wrong with it becomes one message that names file, line and cure."""

import importlib
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

from tidings.errors import ConfigurationError, TidingsError

from .signals import StopAsked

_OURS = {"tidings", "tidings_worker"}
_LIBRARIES = {Path(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}


def imported(module_name: str) -> ModuleType:
    """Import a module from the current folder or the import path. Raises ConfigurationError naming file and cure."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except StopAsked:
        raise  # our own, from a signal; not the module's
    except (Exception, SystemExit) as error:
        place = _place(error, module_name)
        raise ConfigurationError(f"{place}: {_problem(error, module_name)}") from error


def _problem(error: BaseException, module_name: str) -> str:
    """Say what went wrong in an import, and what to do about it."""
    match error:
        case ModuleNotFoundError(name=str(name)) if f"{module_name}.".startswith(f"{name}."):
            return f"no module {name!r} in {Path.cwd()} or installed; run from the folder that holds it, or install it"
        case ModuleNotFoundError(name=str(name)):
            return f"no module {name!r}; install it, or run from the folder that holds it"
        case TidingsError():
            return str(error)  # says itself what to change
        case SyntaxError():
            return f"{type(error).__name__}: {error.msg}"
        case SystemExit():
            return f"the module exits when it is imported, with {error.code!r}; only a script's main may do that"
        case _:
            return f"{type(error).__name__}: {error}; `python -c 'import {module_name}'` shows where it comes from"


def _place(error: BaseException, module_name: str) -> str:
    """Name file and line of the innermost code that is the user's own, not a library's or ours, if there is any."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{error.filename}, line {error.lineno}"
    here = Path.cwd()
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        file = Path(frame.f_code.co_filename)
        beside = here in file.parents and _LIBRARIES.isdisjoint(file.parents) and package not in _OURS
        if beside or package == module_name.partition(".")[0]:
            return f"{file}, line {line}"
    return f"{module_name} does not import"
