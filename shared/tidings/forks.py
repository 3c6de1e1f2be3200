"""What has to begin anew in a child process: threads stay behind in the parent, and locks as they were held there."""

import os
from collections.abc import Callable
from weakref import WeakMethod


def in_child(method: Callable[[], None]) -> None:
    """Call a method in each child that is forked while its object lives."""
    weak = WeakMethod(method)

    def call() -> None:
        if (found := weak()) is not None:
            found()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
