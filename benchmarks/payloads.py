"""What the read benchmarks cache: a small model, a frozen one, and a list of models of 20 KB; and who counts loads."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, TypeAdapter

#: Models in a list: 20 KB as JSON.
LIST_LENGTH = 178
#: What the arguments of every cached function are called, for key and tag templates.
TENANT = "acme"
TAGS = ("users", "tenant:{tenant}", "user:{number}")


class User(BaseModel):
    """About 100 bytes as JSON."""

    id: int
    name: str
    email: str
    active: bool
    created: datetime


class FrozenUser(User, frozen=True):
    """The same, of which nothing can be changed: a cache may hand one object to everybody."""


@dataclass
class Payload:
    """Functions to be cached, of one result type, that count how often they run."""

    type: Any
    #: the result for a number; equal for equal numbers
    value: Callable[[int], Any]
    #: how many different numbers are read
    numbers: int
    loads: int = 0
    adapter: TypeAdapter[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.adapter = TypeAdapter(self.type)

    def encoded(self, number: int) -> bytes:
        """Return the result as JSON."""
        return self.adapter.dump_json(self.value(number))

    def function(self) -> Callable[..., Awaitable[Any]]:
        """Return a function to cache; each call makes a new one."""

        async def load(number: int, tenant: str = TENANT) -> Any:  # noqa: ARG001 the argument is part of the key
            self.loads += 1
            return self.value(number)

        load.__annotations__["return"] = self.type
        return load

    def sync_function(self) -> Callable[..., Any]:
        """Return the same as a plain function."""

        def load(number: int, tenant: str = TENANT) -> Any:  # noqa: ARG001
            self.loads += 1
            return self.value(number)

        load.__annotations__["return"] = self.type
        return load


def small() -> Payload:
    """Return a payload of one small model."""
    return Payload(User, lambda number: _user(number, User), numbers=1000)


def immutable() -> Payload:
    """Return a payload of one frozen model."""
    return Payload(FrozenUser, lambda number: _user(number, FrozenUser), numbers=1000)


def large() -> Payload:
    """Return a payload of 20 KB."""
    return Payload(list[User], _users, numbers=200)


def _users(number: int) -> list[User]:
    return [_user(number + offset, User) for offset in range(LIST_LENGTH)]


def _user(number: int, model: type[User]) -> User:
    return model(
        id=number,
        name=f"User Name {number}",
        email=f"user{number}@example.com",
        active=bool(number % 2),
        created=datetime(2026, 1, 1 + number % 28, 12, 30, number % 60, tzinfo=UTC),
    )
