"""How consistent a cache is, given a sample of it: the rate of stale entries, and the most that it may really be. Pure.

No stale entry among ten says little: with one entry in four stale that happens every eighteenth time. So what is
reported is a bound: the rate of stale entries at which only one sample of twenty would have so few of them (Clopper and
Pearson's upper limit, one-sided, at 95 %). The true consistency is below what the bound says in at most one sample of
twenty. Of a small namespace that was checked as a whole it says less than is known.
"""

import math

CONFIDENCE = 0.95

#: Halvings of the interval in which the bound is looked for: more than a float has digits.
_HALVINGS = 60
#: What adds nothing to a sum, as a part of it.
_NOTHING = 1e-17


def stale_at_most(stale: int, checked: int, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of the rate of stale entries; 1 where nothing is known."""
    if stale >= checked:
        return 1.0
    if stale == 0:
        return -math.expm1(math.log(1 - confidence) / checked)
    low, high = stale / checked, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if _at_most(stale, checked, middle) < 1 - confidence else (middle, high)
    return high


def _at_most(stale: int, checked: int, rate: float) -> float:
    """Return how likely so many stale ones or fewer are in a sample, at a rate that is higher than theirs."""
    if rate >= 1:
        return 0.0
    has, has_not = math.log(rate), math.log1p(-rate)
    whole, total = math.lgamma(checked + 1), 0.0
    for k in range(stale, -1, -1):  # fewer than the rate says are the less likely, the fewer they are
        less = math.exp(whole - math.lgamma(k + 1) - math.lgamma(checked - k + 1) + k * has + (checked - k) * has_not)
        total += less
        if less <= total * _NOTHING:
            break
    return total


def nines(stale_rate: float) -> float:
    """Return a consistency of ``1 - stale_rate`` as nines: 99.9 % are three, 99.97 % are 3.5."""
    return math.inf if stale_rate <= 0 else max(0.0, -math.log10(stale_rate))  # which is -0.0 for a rate of 1


def nines_text(stale_rate: float) -> str:
    """Return the nines as people read them, rounded down to one digit."""
    return f"{math.floor(nines(stale_rate) * 10 + 1e-6) / 10:.1f}"


def percent(stale_rate: float) -> str:
    """Return a consistency as people read it, rounded down to two digits, and to more behind further nines."""
    digits = max(2, min(int(nines(stale_rate)) - 1, 9)) if stale_rate > 0 else 2
    scale = 10**digits
    # A hair is added: 1 - 0.001 is a little less than 0.999.
    return f"{math.floor((1 - stale_rate) * 100 * scale + 1e-6) / scale:.{digits}f} %"
