"""A call's text, as entries keep it, as people write calls. Pure; nothing is imported for it."""

import json

from tidings.calls import split_call
from tidings.codec import TAGGED
from tidings.errors import DecodeError


def call_shown(text: str) -> str:
    """Return ``module:function(name=value)``; empty for what is no call's text."""
    try:
        identity, arguments = split_call(text)
        values = {name: _shown(value) for name, (_, value) in json.loads(arguments).items()}
    except (DecodeError, ValueError, TypeError, AttributeError, RecursionError):
        return ""
    return f"{identity}({', '.join(f'{name}={value}' for name, value in values.items())})"


def _shown(value: str) -> str:
    """Return an argument behind the codec's letter; a date and the like by its text, as it is given to a command."""
    form, plain = value[:1], value[1:]
    match json.loads(plain) if form == TAGGED.decode() else None:
        case {"!": [str(), str() as content]}:
            return content
    return plain
