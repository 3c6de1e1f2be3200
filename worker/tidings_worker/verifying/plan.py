"""What an audit may do."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Plan:
    """How many entries are checked, how fast, how patiently; seconds unless the name says otherwise."""

    sample: int = 1000
    per_second: float = 50
    #: no entry is begun after so long
    longest: float = 60
    #: what a writer has from its commit until it has published
    grace: float = 2
    #: what the workers then have to apply what was published
    settle: float = 10
    load_timeout: float = 10
    #: empty: all
    namespaces: tuple[str, ...] = ()
    #: invalidate the entries that are stale, once they are reported
    repair: bool = False
    #: show values and arguments, whoever's they are
    values: bool = False
