"""What has to begin anew in a child process: threads stay behind in the parent, and locks as they were held there."""

import os
from collections.abc import Callable
from types import MethodType
from typing import Any, cast
from weakref import WeakKeyDictionary

# Not WeakMethods, which raise when they are gone before what they are of, as at the end of the interpreter.
_methods: WeakKeyDictionary[Any, list[Callable[[Any], None]]] = WeakKeyDictionary()


def in_child(method: Callable[[], None]) -> None:
    """Call a method in each child that is forked while its object lives."""
    bound = cast("MethodType", method)
    _methods.setdefault(bound.__self__, []).append(bound.__func__)


def _begin_in_child() -> None:
    for instance, methods in list(_methods.items()):
        for method in methods:
            method(instance)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_in_child)  # once: what is registered there is never let go of
