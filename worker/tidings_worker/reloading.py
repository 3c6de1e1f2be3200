"""SIGHUP: the rules files are read again, and what they say is used from the next batch on, if all of it is valid.

An operator who makes a mistake in a file gets told, and the worker goes on with the rules that it has. All or nothing:
the files are read and checked, away from the event loop, before the first thing changes, and then everything changes
between two steps of the loop. A batch is planned in one such step, so that it is planned by the old rules or the new.
"""

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from tidings.errors import ConfigurationError

from .hangups import HangUps
from .loading import RulesTargets
from .metrics import Metrics
from .rules import Rules
from .telemetry import log
from .toml_rules.toml_file import FileError


class Reloads(NamedTuple):
    """What a worker needs to read its rules again: where they are, and when."""

    targets: RulesTargets
    hang_ups: HangUps


class Reloading:
    """Reads the rules again when that is asked for.

    `take` uses new rules, or raises ConfigurationError and has changed nothing.
    """

    def __init__(
        self, targets: RulesTargets, asked: asyncio.Event, rules: Rules, take: Callable[[Rules], None], metrics: Metrics
    ) -> None:
        self._targets = targets
        self._asked = asked
        self._rules = rules
        self._take = take
        self._metrics = metrics

    async def run(self, stop: asyncio.Event) -> None:
        """Reload each time it is asked for, until `stop` is set. Signals that come meanwhile are one more reload."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                asking = asyncio.create_task(self._asked.wait())
                await asyncio.wait({asking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                asking.cancel()
                if self._asked.is_set() and not stop.is_set():
                    self._asked.clear()  # before the files are read: what is written after this is for another look
                    reload = asyncio.create_task(self.reload())
                    done, _ = await asyncio.wait({reload, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if reload in done:
                        reload.result()
                    else:
                        reload.cancel()  # a module whose import hangs does not hold up a stop
        finally:
            stopping.cancel()

    async def reload(self) -> None:
        """Read the files and use what they say; if anything is wrong with it, say so, and change nothing."""
        files, modules = list(self._targets.files), list(self._targets.modules)
        if not files:
            log.warning("rules_not_reloaded", modules=modules, reason="modules are not read again; restart the worker")
            return
        try:
            rules = await asyncio.to_thread(self._targets.load)
            self._take(rules)
        except ConfigurationError as error:
            problems = list(map(str, error.problems)) if isinstance(error, FileError) else [str(error)]
            self._reject(problems)
        except Exception as error:  # noqa: BLE001 whatever is the matter with the new rules, there are the old ones
            self._reject([repr(error)], error)
        else:
            before, self._rules = self._rules, rules
            log.info(
                "rules_reloaded",
                files=files,
                added=sorted(rules.event_types - before.event_types),
                removed=sorted(before.event_types - rules.event_types),
                rules=len(rules.registered),
                schedules=len(rules.schedules),
                not_read_again=modules,
            )

    def _reject(self, problems: list[str], error: Exception | None = None) -> None:
        self._metrics.rules_rejected()
        log.error("rules_rejected", problems=problems, **({} if error is None else {"exc_info": error}))
