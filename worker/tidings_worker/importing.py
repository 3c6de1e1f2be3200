"""Importing a module, or a function of it: what is wrong with it becomes one message that names file, line and cure."""

import importlib
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from tidings.described import Described
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


def cached_function_at(target: str) -> Described[Any, Any]:
    """Import the cached function ``module:function``, a class's too. Raises ConfigurationError for what is none."""
    module_name, _, qualname = target.partition(":")
    if not module_name or not qualname:
        raise ConfigurationError(f'"{target}" is no function; write "module:function", as in "myapp.users:get"')
    found: Any = imported(module_name)
    for name in qualname.split("."):
        if not hasattr(found, name):
            names = [key for key, value in vars(found).items() if isinstance(value, Described)]
            raise ConfigurationError(f"{target}: no {name!r} there; {nearest(name, names)}")
        found = getattr(found, name)
    cached = inspect.unwrap(found, stop=lambda one: isinstance(one, Described))  # a classmethod comes bound
    if not isinstance(cached, Described):
        raise ConfigurationError(f"{target} is not a function decorated with @cached, but a {type(found).__name__}")
    return cached


def nearest(name: str, known: Collection[str]) -> str:
    """Return what to write instead of a name that is not known: the one that is most like it, else what there is."""
    close = get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there is: {', '.join(sorted(known)) or 'none'}"


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
