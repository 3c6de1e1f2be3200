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

    @property
    def at_most(self) -> float:
        """How long it takes in all: what is begun last is loaded, and again twice, each time after a wait."""
        return self.longest + self.load_timeout + 2 * (self.grace + self.settle + self.load_timeout)
