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
    max_warms: int = Field(default=10, ge=1, description="warms that run at the same time")
    warm_timeout: float = Field(default=60, gt=0, description="a warm that takes longer is ended and tried again")
    warm_tries: int = Field(default=5, ge=1, description="times a failing warm is tried, with growing delays")
    poll: float = Field(default=0.05, gt=0, description="how often the queue of warms is looked at")
    drain_timeout: float = Field(default=3, ge=0, description="what running warms have to finish when the worker stops")
    stop_timeout: float = Field(
        default=10,
        gt=0,
        description="a stop that takes longer, because Redis is frozen say, is ended with exit code 70",
    )

    @classmethod
    def load(cls) -> Self:
        """Read the environment; every problem is listed in one ConfigurationError."""
        try:
            return cls()
        except ValidationError as error:
            raise ConfigurationError(describe(error, "TIDINGS_WORKER_")) from None
