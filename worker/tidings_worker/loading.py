"""Loading the user's rules: from Python modules, and from files that may be read again while the worker runs."""

from collections.abc import Sequence
from typing import Any

from tidings.errors import ConfigurationError

from .importing import imported
from .rules import Rules
from .toml_rules.rules_file import read_rules
from .toml_rules.toml_file import FileError, Problem

_FILE = ".toml"


def load_rules(targets: str | Sequence[str]) -> Rules:
    """Return the rules of one target or of all of several: ``module:name``, or a path that ends in ``.toml``.

    Raises ConfigurationError: of a module its first problem, naming file, name and cure; else all those of the files.
    """
    return RulesTargets(targets).load()


class RulesTargets:
    """What rules are loaded from, once or again and again: modules are imported once, files are read each time."""

    def __init__(self, targets: str | Sequence[str]) -> None:
        given = dict.fromkeys([targets] if isinstance(targets, str) else targets)
        self.files = tuple(target for target in given if target.endswith(_FILE))
        self.modules = tuple(target for target in given if target not in self.files)

    def load(self) -> Rules:
        """Return all the rules together. Raises ConfigurationError as `load_rules` does; nothing is changed then."""
        rules = Rules()
        for module in self.modules:  # first: the files are checked with the event classes that modules define
            rules.include(_of_module(module))
        problems: list[Problem] = []
        for file in self.files:
            try:
                rules.include(read_rules(file))
            except FileError as error:
                problems.extend(error.problems)
        if problems:
            raise FileError(problems)
        return rules


def _of_module(target: str) -> Rules:
    module_name, name = _parsed(target)
    module = imported(module_name)
    place = module.__file__ or f"{module_name}, a folder without __init__.py"
    rules: Any = getattr(module, name, None)
    if not isinstance(rules, Rules):
        found = sorted(key for key, value in vars(module).items() if isinstance(value, Rules))
        hint = f"it has {', '.join(found)}" if found else "make one with rules = Rules()"
        problem = f"{name!r} is {type(rules).__name__}, not Rules" if hasattr(module, name) else f"there is no {name!r}"
        raise ConfigurationError(f"{place}: {problem}; {hint}")
    try:
        rules.check()
    except ConfigurationError as error:
        raise ConfigurationError(f"{place}: {error}") from error
    return rules


def _parsed(target: str) -> tuple[str, str]:
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigurationError(f"{target!r} is neither MODULE:RULES, as in myapp.rules:rules, nor a file.toml")
    if "/" in module_name or module_name.startswith(".") or module_name.endswith(".py"):
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigurationError(f"{target!r} is a path, where a module's name has to be: write {dotted}:{name}")
    return module_name, name
