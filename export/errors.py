"""Every error a user can meet, drawn once. Each class carries the exit status of the command line.

MicrostillError
├── InputError      2  a recipe, an argument or a file is wrong
├── OverBudget      3  the model does not fit the board
├── GateFailed      4  parity, accuracy or training itself failed
└── ResourceMissing 5  a tool, a device or disk space is missing

A message is one line: what is wrong, where, and what to do next.
"""


class MicrostillError(Exception):
    """Base of all errors that are reported as one line instead of a traceback."""

    exit_status = 1


class InputError(MicrostillError):
    """A recipe, an argument or a file is wrong."""

    exit_status = 2


class OverBudget(MicrostillError):
    """The model does not fit the board."""

    exit_status = 3


class GateFailed(MicrostillError):
    """A parity or accuracy gate failed, or training diverged."""

    exit_status = 4


class ResourceMissing(MicrostillError):
    """A tool, a device or disk space is missing."""

    exit_status = 5
