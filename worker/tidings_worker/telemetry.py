"""Every log event that the worker emits. Names and fields are part of the interface.

| log event | level | fields | meaning |
| --- | --- | --- | --- |
| ``worker_started`` | info | ``server``, ``stream``, ``group``, ``consumer``, ``types`` | reading events |
| ``rules_reloaded`` | info | ``files``, ``added``, ``removed``, ``rules``, ``schedules``, ``not_read_again`` | by
SIGHUP: the rules are others from the next batch on; types that have a rule now, or none any more; modules stay |
| ``rules_rejected`` | error | ``problems`` | after SIGHUP a file was wrong: the rules that were there stay |
| ``rules_not_reloaded`` | warning | ``modules``, ``reason`` | SIGHUP, but there is no rules file |
| ``events_applied`` | info | ``events``, ``invalidated``, ``warms``, ``took_ms`` | a batch is invalidated, handed off,
acked |
| ``event_failed`` | warning | ``stream_id``, ``deliveries``, ``again_in_s``, exception | a rule failed; comes again |
| ``event_dead_lettered`` | error | ``stream_id``, ``reason`` | set aside in the dead-letter stream |
| ``events_claimed`` | warning | ``stream``, ``events`` | taken over from a worker that was not heard of |
| ``events_lost`` | error | ``stream``, ``reason``, ``done`` | perhaps some skipped: everything is invalidated |
| ``partitions_unread`` | error | ``streams``, ``partitions``, ``cure`` | publishers have more partitions than this |
| ``events_left_pending`` | warning | ``stream``, ``events`` | stopped in an outage; the next worker applies them |
| ``consumer_removed`` | info | ``consumer`` | a name that had nothing pending and was not heard of |
| ``redis_away`` | error | ``server``, ``part``, ``error`` | once when an outage begins; it is ridden out |
| ``redis_back`` | warning | ``server``, ``away_s`` | once when it is over |
| ``server_setting`` | warning | ``server``, ``code``, ``text`` | what is wrong with a server's settings, at the start |
| ``health_listening`` | info | ``host``, ``port`` | where /healthz, /readyz and /metrics are |
| ``health_failed`` | error | exception | a request for these made a mistake of ours show |
| ``warmed`` | info | ``call``, ``took_ms`` | an entry was loaded ahead of its next read |
| ``warm_in_vain`` | warning | ``call``, ``reason`` | loaded but not cached: too large, or invalidated each time |
| ``warm_retried`` | warning | ``call``, ``tries``, ``error`` | a load failed and will be tried again |
| ``warm_failed`` | error | ``call``, ``tries``, ``error`` | a load failed for the last time; readers will load |
| ``stale_entry_found`` | error | ``key``, ``namespace``, ``call``, ``age_s``, ``by``, ``how``, ``tags``, ``place``,
``difference``, ``tokens`` | an audit found an entry that is not what its function returns, with nothing said |
| ``unstable_entry_found`` | warning | ``key``, ``call``, ``place`` | an audit found a function whose loads differ |
| ``audited`` | info | ``ended``, a number for each outcome, ``repaired``, ``loads``, ``took_s`` | an audit has ended |
| ``audit_ended`` | warning | ``error`` | Redis was away; the next audit is due at its time |
| ``hot_handed_off`` | info | ``namespace``, ``warms`` | what is read most was looked for, and its warms are queued |
| ``jobs_not_given_back`` | warning | ``jobs`` | ended by a stop while Redis was away: run again in some seconds |
| ``warms_lost`` | warning | ``warms`` | not queued: their server was away for too long, or the worker stopped |
| ``jobs_refused`` | error | ``jobs`` | members of the queue that are no jobs were removed, with their keys |
| ``journal_failed`` | warning | ``error`` | `tidings tail` is not told what events did; said once until it is |
| ``part_failed`` | error | ``part``, exception | the consumer or the warm jobs died; the worker stops |
| ``stopping`` | info | ``reason`` | no new events are taken |
| ``stopped`` | info | ``exit_code`` | the last line |
| ``threads_left`` | warning | ``threads`` | after ``stopped``: these of a service held up the end until the timeout |
| ``server_started`` | info | ``server``, ``data`` | a development server runs for this folder |
"""

import logging
import sys

import structlog

log: structlog.stdlib.BoundLogger = structlog.get_logger("tidings.worker")


def configure_logging(*, verbose: bool) -> None:
    """Log to standard error: lines for people on a terminal, JSON elsewhere. Info with `verbose`, else warnings."""
    people = sys.stderr.isatty()
    # Plain tracebacks: the others print local variables, and the server's URL with its password is one of them.
    console = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    renderer = console if people else structlog.processors.JSONRenderer()
    processors: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if people else "iso", utc=not people),
    ]
    if not people:
        processors.append(structlog.processors.format_exc_info)
    structlog.configure(
        processors=[*processors, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO if verbose else logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,  # else each event makes a logger anew, also one that is not logged
    )
