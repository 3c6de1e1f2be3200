"""``tidings publish`` and ``tidings invalidate``: what services do, by hand."""

from typing import Annotated

import typer
from tidings.errors import ConfigurationError

from tidings_worker.loading import load_rules
from tidings_worker.telemetry import configure_logging

from .base import client_cache, errors, out, reporting
from .given import event_given


@reporting
def publish(  # noqa: PLR0917 typer calls it by name
    event_type: Annotated[str, typer.Argument(metavar="TYPE", help="the event's type, as in user.updated")],
    data: Annotated[str, typer.Option(help="the event's data: JSON, @FILE, or - for standard input")] = "{}",
    subject: Annotated[str | None, typer.Option(help="what the event is about, as in user:42")] = None,
    rules: Annotated[list[str] | None, typer.Option(help="rules whose event classes check the data first")] = None,
    wait: Annotated[float, typer.Option(help="seconds to wait until the event is applied; 0: do not wait")] = 0,
    replicas: Annotated[int, typer.Option(min=0, help="replicas that must have the event too")] = 0,
) -> None:
    """Publish one event, and print its stream id."""
    configure_logging(verbose=False)
    if rules is not None:
        load_rules(rules)
    event = event_given(event_type, data)
    with client_cache() as cache:
        receipt = cache.sync.publish(event, subject=subject, replicas=replicas)
        out.print(receipt.id)
        if wait:
            receipt.applied(wait)
            errors.print("applied", style="green")


@reporting
def invalidate(
    namespace: Annotated[list[str] | None, typer.Option(help="a namespace; may be repeated")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="a tag; may be repeated")] = None,
    everything: Annotated[bool, typer.Option("--all", help="every entry under the prefix")] = False,
) -> None:
    """Invalidate by hand, without an event. When it returns, no cache serves what was."""
    configure_logging(verbose=False)
    if not (namespace or tag or everything):
        raise ConfigurationError("nothing to invalidate: give --namespace, --tag or --all")
    with client_cache() as cache:
        if everything:
            cache.sync.invalidate_all()
        else:
            cache.sync.invalidate(namespaces=namespace or (), tags=tag or ())
