"""What a service writes, as the type checker sees it: never run, checked by `test_typing.py` with ``mypy --strict``.

Each ``type: ignore`` stands on a call that must be an error: should a decorated function lose its signature, the
ignore would be unused, which is an error as well.
"""

from collections.abc import Awaitable, Callable, Sequence
from datetime import date, timedelta
from typing import Any, assert_type

import tidings
from pydantic import BaseModel
from tidings import Cache, CachedFunction, CachedSyncFunction, Event, Receipt, cached
from tidings.publisher import SyncReceipt

cache = Cache("memory://", prefix="shop", default_ttl=60)


class User(BaseModel):
    id: int
    name: str


class UserRenamed(Event, type="user.renamed"):
    user_id: int


# Coroutine functions


@cached(namespace="users", ttl=timedelta(minutes=5), tags=["user:{user_id}"])
async def find_user(user_id: int, *, on: date | None = None) -> User | None:
    return User(id=user_id, name=f"{on}")


@cache.cached(tags=lambda user_id: [f"user:{user_id}"], result_tags=lambda names: names, when=lambda user_id: user_id)
async def names(user_id: int) -> list[str]:
    return [str(user_id)]


async def coroutine_functions() -> None:
    assert_type(await find_user(1), User | None)
    assert_type(await find_user(user_id=1, on=date(2026, 1, 1)), User | None)
    assert_type(find_user.key(1), str)
    assert_type(await find_user.refresh(1), User | None)
    assert_type(await find_user.uncached(1), User | None)
    await find_user.invalidate(1, on=None)
    assert_type(await names(1), list[str])

    await find_user("1")  # type: ignore[arg-type]
    await find_user()  # type: ignore[call-arg]
    await find_user(1, date(2026, 1, 1))  # type: ignore[call-arg]
    await find_user(1, at=None)  # type: ignore[call-arg]
    find_user.key("1")  # type: ignore[arg-type]
    await find_user.refresh(None)  # type: ignore[arg-type]
    await find_user.invalidate(1, 2)  # type: ignore[call-arg, arg-type]
    await find_user.uncached("1")  # type: ignore[arg-type]
    lost: int = await find_user(1)  # type: ignore[assignment]
    not_awaited: User | None = find_user(1)  # type: ignore[assignment]
    assert [lost, not_awaited]


# Plain functions


@cached(ttl="short")
def price(article: str, /, *quantities: int, currency: str = "EUR") -> float:
    return float(sum(quantities)) + len(article + currency)


def plain_functions() -> None:
    assert_type(price("pen", 1, 2, currency="USD"), float)
    assert_type(price.key("pen"), str)
    assert_type(price.refresh("pen", 1), float)
    assert_type(price.uncached("pen"), float)
    price.invalidate("pen", 1)

    price(1)  # type: ignore[arg-type]
    price("pen", "1")  # type: ignore[arg-type]
    price(article="pen")  # type: ignore[call-arg]
    price("pen", currency=1)  # type: ignore[arg-type]
    price.refresh()  # type: ignore[call-arg]
    price.invalidate(1)  # type: ignore[arg-type]
    lost: str = price("pen")  # type: ignore[assignment]
    assert lost


# Methods


class Users:
    @cached()
    async def find(self, user_id: int) -> User:
        return User(id=user_id, name="")

    @cached()
    def count(self, team: str) -> int:
        return len(team)

    @cached()
    @classmethod
    async def all(cls, page: int = 1) -> list[User]:
        return [User(id=page, name="")]

    @cached()
    @classmethod
    def oldest(cls, team: str) -> User:
        return User(id=1, name=team)

    @staticmethod
    @cached()
    async def parse(text: str) -> User:
        return User(id=1, name=text)

    @staticmethod
    @cached()
    def render(user: int) -> str:
        return str(user)


async def methods(users: Users) -> None:
    assert_type(await users.find(1), User)
    assert_type(await users.find.refresh(user_id=1), User)
    assert_type(users.find.key(1), str)
    assert_type(await users.find.uncached(1), User)
    await users.find.invalidate(1)
    assert_type(await Users.find(users, 1), User)

    assert_type(users.count("a"), int)
    assert_type(users.count.refresh("a"), int)
    assert_type(users.count.key("a"), str)
    users.count.invalidate("a")

    assert_type(await Users.all(), list[User])
    assert_type(await users.all(page=2), list[User])
    assert_type(Users.all.key(2), str)
    assert_type(Users.oldest("a"), User)
    assert_type(users.oldest.refresh("a"), User)
    assert_type(await Users.parse("a"), User)
    assert_type(Users.render(1), str)

    await users.find("1")  # type: ignore[arg-type]
    await users.find()  # type: ignore[call-arg]
    await users.find.refresh("1")  # type: ignore[arg-type]
    await users.find.invalidate()  # type: ignore[call-arg]
    users.find.key(users, 1)  # type: ignore[call-arg, arg-type]
    users.count(1)  # type: ignore[arg-type]
    users.count.refresh(1)  # type: ignore[arg-type]
    await Users.all("2")  # type: ignore[arg-type]
    Users.oldest(1)  # type: ignore[arg-type]
    await Users.parse(1)  # type: ignore[arg-type]
    Users.render("1")  # type: ignore[arg-type]


# Where a cached function stands in for the function


async def call(function: Callable[[int], Awaitable[User]]) -> User:
    return await function(1)


def tell(function: Callable[[str], int]) -> int:
    return function("a")


async def stand_ins(users: Users) -> None:
    await call(users.find)
    tell(users.count)
    tell(users.find)  # type: ignore[arg-type]
    await call(users.count)  # type: ignore[arg-type]


def kinds(
    loads: CachedFunction[[int], User],
    computes: CachedSyncFunction[[int], User],
) -> None:
    assert_type(computes(1), User)
    loads("1")  # type: ignore[arg-type, unused-coroutine]
    computes("1")  # type: ignore[arg-type]


# By hand


async def load_user() -> User:
    return User(id=1, name="")


async def load_users(wanted: list[str]) -> dict[str, User]:
    return {key: User(id=1, name=key) for key in wanted}


def read_user() -> User:
    return User(id=1, name="")


def read_users(wanted: Sequence[str]) -> dict[str, User]:
    return {key: User(id=1, name=key) for key in wanted}


def read_numbers(wanted: list[int]) -> dict[str, User]:
    return {str(key): User(id=key, name="") for key in wanted}


async def by_hand() -> None:
    assert_type(await cache.get_or_set("k", load_user, ttl=60, tags=["user:1"]), User)
    assert_type(await cache.get_or_set_many(["a", "b"], load_users, tags=lambda key: [f"user:{key}"]), dict[str, User])
    assert_type(await cache.get_many(("a", "b"), default=0), dict[str, Any])
    assert_type(await cache.delete("k"), bool)
    await cache.set_many({"a": 1, "b": [2]}, ttl="long")
    assert_type(await cache.publish(UserRenamed(user_id=1)), Receipt)
    assert_type(await tidings.publish(UserRenamed(user_id=1)), Receipt)

    await cache.get_or_set("k", read_user)  # type: ignore[arg-type]
    await cache.get_or_set("k", load_user, ttll=60)  # type: ignore[call-arg]
    await cache.get_or_set_many(["a"], read_users)  # type: ignore[arg-type]
    await cache.set("k", 1, ttl="soon")  # type: ignore[arg-type]
    await cache.invalidate(namespace=["users"])  # type: ignore[call-arg]
    await cache.publish("user.renamed")  # type: ignore[arg-type]


def by_hand_in_threads() -> None:
    assert_type(cache.sync.get_or_set("k", read_user, ttl=60), User)
    assert_type(cache.sync.get_or_set_many(["a"], read_users, tags=["users"]), dict[str, User])
    assert_type(cache.sync.get_many(["a"]), dict[str, Any])
    assert_type(cache.sync.publish(UserRenamed(user_id=1)), SyncReceipt)
    cache.sync.set_many({"a": 1}, tags=["users"])
    cache.sync.invalidate_tags("user:1", "user:2")

    cache.sync.get_or_set_many(["a"], read_numbers)  # type: ignore[arg-type]
    cache.sync.invalidate_tags(["user:1"])  # type: ignore[arg-type]
    cache.sync.invalidate_namespace(name=1)  # type: ignore[arg-type]


# Functions whose first argument is a class: only as classmethods are they bound


@cached(key="{model.__name__}:{number}")
async def load_model(model: type[User], number: int) -> User:
    return model(id=number, name="")


async def functions_of_classes() -> None:
    assert_type(await load_model(User, 1), User)
    assert_type(load_model.key(User, 1), str)
    await load_model.invalidate(User, number=1)

    await load_model(1)  # type: ignore[call-arg, arg-type]
    await load_model(User, "1")  # type: ignore[arg-type]


# Options


def options() -> None:
    cached(ttll=5)  # type: ignore[call-arg]
    cached(ttl="soon")  # type: ignore[arg-type]
    cached(tags=[1])  # type: ignore[list-item]
    cached(local_ttl="5")  # type: ignore[arg-type]
    cached(find_user)  # type: ignore[arg-type]
    cache.cached(namespce="users")  # type: ignore[call-arg]
    Cache("memory://", prefx="")  # type: ignore[call-arg]
    Cache("memory://", default_ttl="60")  # type: ignore[arg-type]
    Cache()  # type: ignore[call-arg]
    tidings.configure("memory://", urll="")  # type: ignore[call-arg]
