"""Rules run with example events: what they asked for, and over which examples they failed."""

import inspect
import traceback
from dataclasses import dataclass, field
from datetime import UTC, datetime

from tidings import Event
from tidings.envelopes import Envelope
from tidings.errors import ConfigurationError, PermanentError
from tidings.events import UntypedEvent, class_of

from tidings_worker.places import Place
from tidings_worker.plans import Draft, Plan
from tidings_worker.rules import Registered
from tidings_worker.timelimit import EndlessError, within

from .examples import examples

#: Seconds that a rule has for one event: it only decides, and the worker does nothing else meanwhile.
LONGEST = 3.0

_ENVELOPE = Envelope("example", "", "", datetime.fromtimestamp(0, UTC), {})


@dataclass(slots=True)
class Trial:
    """What came of running one rule with examples of its events."""

    #: events that it was run with to the end
    ran: int = 0
    tags: set[str] = field(default_factory=set)
    namespaces: set[str] = field(default_factory=set)
    everything: bool = False
    hot: set[str] = field(default_factory=set)
    #: the first example of each line that asked for what cannot be: it would be a dead letter
    failures: dict[Place, str] = field(default_factory=dict)
    #: what else was raised, which may be the example's fault
    errors: set[str] = field(default_factory=set)


def try_out(registered: Registered) -> Trial:
    """Run a rule, which decides from the event alone and may run any number of times, with examples of its class."""
    trial = Trial()
    try:
        inspect.signature(registered.rule).bind(None)
    except TypeError as error:
        trial.failures[registered.place] = f"a rule is called with the event alone: {error}; write def rule(event)"
        return trial
    except ValueError:  # a builtin, which does not tell
        pass
    event_class = registered.event_class or class_of(registered.event_type)
    if event_class is UntypedEvent:
        return trial
    for event in examples(event_class):
        if not _run(registered, event, trial):
            break
    return trial


def _run(registered: Registered, event: Event, trial: Trial) -> bool:
    """Run a rule with one example; say whether it is worth running with another."""
    draft = Draft()
    try:
        with within(LONGEST):
            draft.take(registered.rule(event), _ENVELOPE, registered.name)
    except EndlessError as error:
        why = f"{registered.name}: {error}, for {_shown(event)}; the worker would wait for it: let it decide and end"
        trial.failures[_place(error, registered)] = why
        _note(draft.plan(), trial)
        return False
    except (ConfigurationError, PermanentError) as error:
        place = _place(error, registered)
        trial.failures.setdefault(place, f"{error}, for {_shown(event)}")
    except (Exception, SystemExit) as error:  # noqa: BLE001 a rule is the service's code
        trial.errors.add(f"{type(error).__name__}: {error}")
    else:
        trial.ran += 1
    _note(draft.plan(), trial)
    return True


def _note(plan: Plan, trial: Trial) -> None:
    trial.tags |= plan.tags
    trial.namespaces |= plan.namespaces
    trial.everything = trial.everything or plan.everything
    trial.hot |= {hot.namespace for hot in plan.hot}


def _place(error: Exception, registered: Registered) -> Place:
    """Return the innermost line of the rule's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == registered.place.file and frame.lineno]
    return Place(registered.place.file, lines[-1]) if lines else registered.place


def _shown(event: Event) -> str:
    text = event.model_dump_json()
    return text if len(text) <= 120 else f"{text[:119]}…"  # noqa: PLR2004 a line of a report
