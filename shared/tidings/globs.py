"""Redis's own glob, as SCAN MATCH and KEYS understand it, as a regular expression. Pure.

The server matches bytes, so this does: ``?`` is one byte and not one character, and keys are matched as UTF-8.
"""

import re
from collections.abc import Iterable

_ANY = frozenset(range(256))
_STAR, _ONE, _OPEN, _CLOSE, _NOT, _DASH, _ESCAPE = b"*?[]^-\\"


def glob_to_regex(glob: str) -> re.Pattern[bytes]:
    r"""Return what matches, with `fullmatch`, exactly the keys (as UTF-8) that the server's MATCH would.

    ``*`` any bytes, ``?`` one byte, ``[abc]`` ``[^a]`` ``[a-z]`` one of a class or none of it, ``\`` the next byte as
    it is. A class that is never closed ends with the pattern. A range between an ASCII and another byte means different
    things on different processors (C's ``char`` has a sign on some), so that a class with one matches every byte here:
    rather too much than too little. Takes time linear in pattern times key, whatever the pattern.

    >>> [key for key in (b"user:1", b"user:12", b"uses:1") if glob_to_regex("user:[0-9]").fullmatch(key)]
    [b'user:1']
    """
    runs: list[list[frozenset[int]]] = [[]]
    text, at = glob.encode(), 0
    while at < len(text):
        byte = text[at]
        at += 1
        if byte == _STAR:
            runs.append([])
        elif byte == _ONE:
            runs[-1].append(_ANY)
        elif byte == _OPEN:
            members, at = _class(text, at)
            runs[-1].append(members)
        else:
            if byte == _ESCAPE and at < len(text):
                byte = text[at]
                at += 1
            runs[-1].append(frozenset((byte,)))
    first, *others = map(_run, runs)
    if not others:
        return re.compile(first, re.DOTALL)
    # A run between two stars may be taken where it is first met and never elsewhere: what follows has the most room
    # then. Without that (the atomic group), a few stars make the expression try every way of placing them.
    *middle, last = others
    return re.compile(first + b"".join(b"(?>.*?%b)" % run for run in middle) + b".*" + last, re.DOTALL)


def _class(text: bytes, at: int) -> tuple[frozenset[int], int]:
    """Return the bytes that the class whose ``[`` stands before `at` matches, and where the pattern goes on."""
    negated = text[at : at + 1] == b"^"
    at += negated
    members: set[int] = set()
    undefined = False
    while at < len(text) and text[at] != _CLOSE:
        if text[at] == _ESCAPE and at + 1 < len(text):
            members.add(text[at + 1])
            at += 2
        elif at + 2 < len(text) and text[at + 1] == _DASH:
            low, high = sorted((text[at], text[at + 2]))
            undefined |= low < 128 <= high  # noqa: PLR2004 where ASCII ends
            members.update(range(low, high + 1))
            at += 3
        else:
            members.add(text[at])
            at += 1
    if undefined:
        return _ANY, at + 1
    return (_ANY - members if negated else frozenset(members)), at + 1


def _run(run: Iterable[frozenset[int]]) -> bytes:
    return b"".join(map(_one_of, run))


def _one_of(members: frozenset[int]) -> bytes:
    if members == _ANY:
        return b"."
    if not members:
        return b"(?!)"
    if len(members) == 1:
        return re.escape(bytes(members))
    return b"[%b]" % b"".join(b"\\x%02x" % member for member in sorted(members))
