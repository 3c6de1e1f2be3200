"""The one reader of the environment.

Every variable starts with ``TIDINGS_``; the server's URL is also taken from ``REDIS_URL``. A development server that
``tidings worker`` started in this folder is found through the file ``.tidings/env``, which real variables override.
"""

import json
import re
from typing import Annotated, Any, Self, TypedDict
from urllib.parse import urlsplit

from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from .errors import ConfigurationError
from .policy import LONGEST_SECONDS

#: Where `tidings worker` notes the address of the server that it started for this folder.
DEVELOPMENT_ENV_FILE = ".tidings/env"

_NOT_A_URL = "<not a URL>"

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-]*$")]


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is wanted, not True or False")  # noqa: TRY004 pydantic collects these
    return value


def _from_json(value: Any) -> Any:
    """Read what the environment holds here and not in pydantic-settings, whose error would have the text in it."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError('is not JSON; an object is wanted, as in {"name": ...}') from None


#: More than ten years is a mistake, and infinity is no number of milliseconds.
Duration = Annotated[float, BeforeValidator(_no_bool), Field(le=LONGEST_SECONDS, allow_inf_nan=False)]
Size = Annotated[int, BeforeValidator(_no_bool)]


class Settings(BaseSettings):
    """Configuration of a cache. Seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="TIDINGS_", env_ignore_empty=True, extra="ignore", frozen=True, populate_by_name=True
    )

    url: SecretStr | None = Field(
        default=None,
        validation_alias=AliasChoices("TIDINGS_URL", "REDIS_URL"),
        description="redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or memory://; None: memory://",
    )
    jobs_url: SecretStr | None = Field(
        default=None,
        description="where warm jobs live if not on the cache's server: one server or sentinels, never a cluster",
    )
    prefix: Word = Field(
        default="", description="starts every key that tidings writes; shared by all that share events"
    )
    version: Word = Field(default="", description="part of entry keys only: a new version starts with an empty cache")
    default_ttl: Duration = Field(
        default=3600,
        gt=0,
        validation_alias=AliasChoices("TIDINGS_DEFAULT_TTL", "TIDINGS_TTL_DEFAULT"),
        description='seconds an entry lives when its function names no ttl, or ttl="default"',
    )
    token_ttl: Duration = Field(
        default=7 * 86_400,
        ge=60,
        description="seconds an unused token is remembered; an expired token costs a miss, never a stale hit",
    )
    vacancy_ttl: Duration = Field(
        default=600,
        ge=1,
        description="seconds a load may take and still be stored; a slower one is served but not cached",
    )
    max_value_bytes: Size = Field(
        default=4 * 1024 * 1024, gt=0, description="a larger encoded value is served but not cached"
    )
    operation_timeout: Duration = Field(
        default=2.0,
        gt=0,
        description="seconds Redis has for one operation; a read then loads, an invalidation raises",
    )
    bulk_bytes: Size = Field(
        default=16 * 1024,
        gt=0,
        description="values from this size on travel on a connection of their own, so that small reads do not wait",
    )
    lease_ttl: Duration = Field(
        default=5.0,
        gt=0,
        description="seconds other processes wait for a load before one of them loads too; more than a load takes",
    )
    max_refreshes: Size = Field(
        default=64, ge=0, description="refreshes in the background at a time; beyond it a stale value is not refreshed"
    )
    hot_sample: Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1, allow_inf_nan=False)] = Field(
        default=0.01, description="fraction of reads that are noted, for Warm.hot to find what is read most; 0: none"
    )
    report_interval: Duration = Field(
        default=10,
        ge=0,
        description="seconds after which a process adds what it has counted to what `tidings stats` shows; 0: never",
    )
    local_max_entries: Size = Field(default=10_000, gt=0, description="entries that the local tier holds at most")
    local_max_bytes: Size = Field(default=64 * 1024 * 1024, gt=0, description="encoded bytes in the local tier at most")
    outage_ttl: Duration = Field(
        default=0, ge=0, description="seconds a value loaded while Redis is away is kept in this process; 0: not at all"
    )
    outage_max_bytes: Size = Field(
        default=16 * 1024 * 1024, gt=0, description="encoded bytes that are kept in an outage at most"
    )
    compress_bytes: Size = Field(
        default=0, ge=0, description="values from this size on are compressed with zstd (tidings[zstd]); 0: none"
    )
    encryption_keys: Annotated[dict[str, list[SecretStr]], NoDecode, BeforeValidator(_from_json)] = Field(
        default_factory=dict,
        description="AES keys by namespace ('*': every other), base64, newest first: the first encrypts, all decrypt",
    )
    ttls: Annotated[dict[str, Annotated[Duration, Field(gt=0)]], NoDecode, BeforeValidator(_from_json)] = Field(
        default_factory=dict, description="seconds by namespace, for functions that name no ttl"
    )
    ttl_short: Duration = Field(default=60, gt=0, description='seconds meant by ttl="short"')
    ttl_long: Duration = Field(default=86_400, gt=0, description='seconds meant by ttl="long"')
    log_length: Size = Field(default=10_000, ge=100, description="entries kept in the invalidation log, about")
    group: Word = Field(
        default="tidings", min_length=1, description="the consumer group whose ack makes an event applied"
    )
    partitions: Size = Field(
        default=1, ge=1, le=256, description="streams that events are spread over by subject; workers read all of them"
    )
    source: str = Field(default="/tidings", min_length=1, description="CloudEvents source of events published here")

    @classmethod
    def load(cls, *, development_server: bool = True) -> Self:
        """Read the environment, and unless told not to, where the folder's development server is.

        Raises ConfigurationError, which lists every problem.
        """
        try:
            return cls(_env_file=DEVELOPMENT_ENV_FILE if development_server else None)
        except ValidationError as error:
            raise ConfigurationError(describe(error, "TIDINGS_")) from None


class CacheOptions(TypedDict, total=False):
    """What `Cache` takes beside its URL: the fields of `Settings` that say how it caches."""

    prefix: str
    version: str
    default_ttl: float
    token_ttl: float
    vacancy_ttl: float
    max_value_bytes: int
    bulk_bytes: int
    operation_timeout: float
    lease_ttl: float
    max_refreshes: int
    hot_sample: float
    report_interval: float
    local_max_entries: int
    local_max_bytes: int
    outage_ttl: float
    outage_max_bytes: int
    compress_bytes: int
    encryption_keys: dict[str, list[SecretStr]]
    ttls: dict[str, float]
    ttl_short: float
    ttl_long: float
    log_length: int
    group: str
    source: str


class GivenSettings(Settings):
    """Settings from arguments alone: a cache made by hand does not read the environment."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 pydantic-settings fixes the signature
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the arguments and nothing else."""
        return (init_settings,)

    @classmethod
    def of(cls, url: str, options: CacheOptions) -> Self:
        """Make settings of a URL and options. Raises ConfigurationError, which lists every problem."""
        if not isinstance(url, str):
            raise ConfigurationError(f"the URL is a string, such as redis://localhost:6379, not a {type(url).__name__}")
        unknown = options.keys() - cls.model_fields.keys()
        if unknown:
            raise ConfigurationError(f"Cache takes no option {', '.join(sorted(unknown))}")
        try:
            return cls(url=SecretStr(url), **options)
        except ValidationError as error:
            raise ConfigurationError(describe(error, "")) from None


def describe(error: ValidationError, prefix: str) -> str:
    """One line a problem, by the variable's name, without the value: values can be secret."""
    lines = [
        f"{prefix}{'.'.join(map(str, e['loc'])).upper()}: {e['msg'].removeprefix('Value error, ')}"
        for e in error.errors(include_input=False)
    ]
    return "settings are not valid:\n  " + "\n  ".join(lines).replace(prefix * 2, prefix)


def redact(url: str) -> str:
    """Return the URL fit for a log: without user, password or query.

    What is not plainly a URL is not shown at all: with an @ behind the host, on either side of it may be a password.

    >>> redact("rediss://app:s3cret@cache.internal:6380/0?ssl_cert_reqs=none")
    'rediss://cache.internal:6380/0'
    >>> redact("app:s3cret@cache.internal")
    '<not a URL>'
    """
    found = re.fullmatch(r"(rediss?(?:\+sentinel|\+cluster)?|unix|memory)://([^/?#]*@)?([^@?#]*)([?#][^@]*)?", url)
    if found is None:
        return _NOT_A_URL
    hosts = found[3].partition("/")[0]
    try:
        for host in hosts.split(","):
            _ = urlsplit(f"//{host}").port  # a password whose @ is missing stands where the port belongs
    except ValueError:
        return _NOT_A_URL
    return f"{found[1]}://{found[3]}"
