"""A call's text, as entries keep it, as people write calls. Pure; nothing is imported for it."""

import json

from tidings.calls import split_call
from tidings.errors import DecodeError


def call_shown(text: str) -> str:
    """Return ``module:function(name=value)``; empty for what is no call's text."""
    try:
        identity, arguments = split_call(text)
        values = {name: value[1:] for name, (_, value) in json.loads(arguments).items()}  # behind the codec's letter
    except (DecodeError, ValueError, TypeError, AttributeError):
        return ""
    return f"{identity}({', '.join(f'{name}={value}' for name, value in values.items())})"
