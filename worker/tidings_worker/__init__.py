"""The worker's side of tidings: rules that map events to invalidations and warming."""

from .plans import Invalidate, Plan, Warm
from .rules import Rules

__all__ = ["Invalidate", "Plan", "Rules", "Warm"]
