"""The error that models raise for a wrong request; the command line turns it into exit status 2."""


class ModelError(ValueError):
    """A model cannot be built or loaded as asked; the message says what to change."""
