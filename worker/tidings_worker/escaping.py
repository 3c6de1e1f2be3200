"""Text that anybody may have written, on its way to a terminal. Pure."""


def escaped(text: str) -> str:
    """Return text that does nothing to a terminal: what cannot be printed is written out."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text)
