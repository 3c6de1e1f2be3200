"""Event-driven cache invalidation: cached reads that cannot be stale, and the events that keep them so."""

from . import errors
from .cache import Cache
from .default import (
    cached,
    configure,
    get_cache,
    invalidate,
    invalidate_all,
    invalidate_namespace,
    invalidate_pattern,
    invalidate_tags,
    publish,
    resource,
    set_cache,
)
from .events import Envelope, Event
from .functions import CachedFunction, CachedSyncFunction
from .publisher import Receipt
from .settings import Settings

__all__ = [
    "Cache",
    "CachedFunction",
    "CachedSyncFunction",
    "Envelope",
    "Event",
    "Receipt",
    "Settings",
    "cached",
    "configure",
    "errors",
    "get_cache",
    "invalidate",
    "invalidate_all",
    "invalidate_namespace",
    "invalidate_pattern",
    "invalidate_tags",
    "publish",
    "resource",
    "set_cache",
]
