"""What has to begin anew in a child process: threads stay behind in the parent, and locks as they were held there."""

import os
from collections.abc import Callable
from weakref import WeakMethod

_methods: set[WeakMethod[Callable[[], None]]] = set()


def in_child(method: Callable[[], None]) -> None:
    """Call a method in each child that is forked while its object lives."""
    _methods.add(WeakMethod(method, _methods.discard))


def _begin_in_child() -> None:
    for weak in list(_methods):
        if (method := weak()) is not None:
            method()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_begin_in_child)  # once: what is registered there is never let go of
