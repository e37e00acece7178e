"""What is told to the person at the keyboard, rather than to the programmer."""

import re

LONGEST = 1000  # characters of a message; what is cut is its middle
_LINE_BREAKS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")


class ConfigError(ValueError):
    """What the user wrote cannot be run; the message is one line that names the field or file and the mend."""

    def __init__(self, message: object):
        super().__init__(one_line(message))


def one_line(message: object) -> str:
    """The message as one printable line of bearable length: line breaks become spaces, other controls escapes."""
    joined = _LINE_BREAKS.sub(" ", str(message).strip())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in joined)
    half = LONGEST // 2
    return shown if len(shown) <= LONGEST else f"{shown[:half]} ... {shown[-half:]}"
