"""Warms at times: arq's cron fields, and whether they ever come. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .places import Place
from .plans import Hot, Warm

#: arq's cron fields: a number, or a set of numbers; None: every one.
CronField = int | set[int] | None

#: The cron fields, each with its lowest and highest number; weekdays from Monday, 0.
CRON_RANGES = {
    "month": (1, 12),
    "day": (1, 31),
    "weekday": (0, 6),
    "hour": (0, 23),
    "minute": (0, 59),
    "second": (0, 59),
}

#: The days that a month has at most.
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A warm at the times that the cron fields name."""

    warm: Warm | Hot
    month: CronField
    day: CronField
    weekday: CronField
    hour: CronField
    minute: CronField
    second: CronField
    place: Place | None = None

    @property
    def name(self) -> str:
        """What makes two of them the same, in every worker: what is warmed, and when."""
        fields = [getattr(self, field) for field in CRON_RANGES]
        return f"{self.warm.name}:{' '.join(map(_text, fields))}"


#: For so long after its time a schedule's job is left to a worker that has the schedule; and how long a time can be.
_LEFT_MS, _TIME_DIGITS = 60_000, 15


def job_name(queue: str, schedule: str) -> str:
    """Return what a schedule's jobs are named after: the queue too, since arq's keys are not. The time follows."""
    return f"{queue}:schedule:{schedule}"


def was_due_lately(job_id: str, queue: str, now_ms: int) -> bool:
    """Say whether this is the job of a schedule, whichever it is, that was due within the last minute."""
    name, _, due = job_id.rpartition(":")
    is_time = due.isascii() and due.isdigit() and len(due) <= _TIME_DIGITS
    return name.startswith(job_name(queue, "")) and is_time and 0 <= now_ms - int(due) < _LEFT_MS


def problem_of(name: str, given: Any) -> str | None:
    """Return what is wrong with one cron field; None: nothing."""
    if given is None:
        return None
    low, high = CRON_RANGES[name]
    numbers = given if isinstance(given, set) else {given}
    if not numbers or not all(type(number) is int and low <= number <= high for number in numbers):
        return f"{name}={given!r} is not a number from {low} to {high}, or a set of them"
    return None


def never_comes(fields: Mapping[str, CronField]) -> str | None:
    """Return why fields that are each in their range name no time together; None: they name one.

    arq would look for it until the end of the calendar, and nothing else would run meanwhile.
    """
    days, months = _numbers(fields.get("day")), _numbers(fields.get("month"))
    if days is None or months is None or any(day <= _DAYS[month - 1] for day in days for month in months):
        return None
    return f"day={min(days)} never comes in month={', '.join(map(str, sorted(months)))}"


def _numbers(field: CronField) -> set[int] | None:
    return {field} if isinstance(field, int) else field


def _text(field: CronField) -> str:
    numbers = _numbers(field)
    return "*" if numbers is None else ",".join(map(str, sorted(numbers)))
