"""The worker's side of tidings: rules that map events to invalidations and warming."""

from .rules import Invalidate, Plan, Rules, Warm

__all__ = ["Invalidate", "Plan", "Rules", "Warm"]
