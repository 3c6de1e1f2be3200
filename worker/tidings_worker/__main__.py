"""``python -m tidings_worker`` is ``tidings``: for a process that knows its interpreter but not its PATH."""

from .cli import main

main()
