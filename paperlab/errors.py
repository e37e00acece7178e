"""What is told to the person at the keyboard, rather than to the programmer."""


class ConfigError(ValueError):
    """What the user wrote cannot be run; the message is one line that names the field or file and the mend."""
