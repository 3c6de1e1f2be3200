"""The worker's settings: frozen, validated, every problem listed at once. The cache's are `tidings.Settings`."""

from typing import Self

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict
from tidings.errors import ConfigurationError
from tidings.settings import describe


class WorkerSettings(BaseSettings):
    """How a worker runs; every variable starts with ``TIDINGS_WORKER_``. Seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(env_prefix="TIDINGS_WORKER_", extra="ignore", frozen=True)

    batch: int = Field(default=500, ge=1, le=10_000, description="events read and applied together, at most")
    block_ms: int = Field(
        default=1000,
        ge=10,
        le=1000,
        description="milliseconds a read waits for events; bounds how long a stop waits",
    )
    snapshot_reads: bool = Field(
        default=False, description="rows that Debezium reads for a snapshot are events too, `<schema>.<table>.read`"
    )
    max_deliveries: int = Field(
        default=5, ge=1, description="times an event that fails is delivered before it is set aside as a dead letter"
    )
    retry_delay: float = Field(
        default=1.0, gt=0, description="until an event that failed is delivered again; doubles each time, to a minute"
    )
    claim_idle: float = Field(
        default=5.0,
        ge=0.1,
        description="an event in the hands of a worker that has not been heard of for so long is another's to apply",
    )
    consumer_idle: float = Field(
        default=600.0, ge=1, description="a consumer without pending events is removed after so long without a sign"
    )
    keep_events: int = Field(
        default=10_000, ge=0, description="events kept in a stream after every group has acknowledged them, about"
    )
    check_interval: float = Field(default=1.0, gt=0, description="between two looks for lost events")
    max_warms: int = Field(default=10, ge=1, description="warms that run at the same time")
    warm_timeout: float = Field(default=60, gt=0, description="a warm that takes longer is ended and tried again")
    warm_tries: int = Field(default=5, ge=1, description="times a failing warm is tried, with growing delays")
    warms_per_second: float = Field(
        default=100,
        ge=0,
        allow_inf_nan=False,
        description="warms that one worker starts at most, 0: no limit; 100 keep a database busy as one connection"
        " does with queries of 10 ms, so that it has time for readers",
    )
    poll: float = Field(default=0.05, gt=0, description="how often the queue of warms is looked at")
    verify_every: float = Field(
        default=0,
        ge=0,
        allow_inf_nan=False,
        description="from one audit to the next, see `tidings verify`; one worker of all makes it; 0: none",
    )
    verify_sample: int = Field(default=200, ge=1, le=1_000_000, description="entries that one audit checks")
    verify_per_second: float = Field(
        default=10, gt=0, allow_inf_nan=False, description="loads of an audit at most, so that readers have the rest"
    )
    verify_grace: float = Field(
        default=2, ge=0, allow_inf_nan=False, description="what a writer has from its commit until it has published"
    )
    verify_repair: bool = Field(default=False, description="an audit invalidates the entries that it finds stale")
    drain_timeout: float = Field(default=3, ge=0, description="what running warms have to finish when the worker stops")
    stop_timeout: float = Field(
        default=10,
        gt=0,
        description="a stop that takes longer, because Redis is frozen say, is ended with exit code 70",
    )
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65_535,
        description="port of /healthz, /readyz and /metrics; 0: one that is free, as logged; None: no such server",
    )
    http_host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="address of the above; 0.0.0.0 or :: answers other machines too, which nothing here authenticates",
    )

    @classmethod
    def load(cls) -> Self:
        """Read the environment; every problem is listed in one ConfigurationError."""
        try:
            return cls()
        except ValidationError as error:
            raise ConfigurationError(describe(error, "TIDINGS_WORKER_")) from None
