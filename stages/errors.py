"""The two kinds of failure that end a stage with one line instead of a traceback."""


class InputError(Exception):
    """Something that the user can mend: parameters, data, artifacts, disk. Exit code 2.

    The message is one line: what is wrong, where, and what to do.
    """


class OutsideError(Exception):
    """Something outside that failed: a server, a hub, the network. Exit code 1."""
