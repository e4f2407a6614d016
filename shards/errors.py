"""The errors that a user can cause, and their exit codes.

Whatever is wrong with a user's input or options ends in one of these, with a message of one line that says where,
what was found, what was expected and what to do. `assert` is for our own mistakes only.
"""

from shards.plaintext import masked, printable

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: try again later


def first_line(error: BaseException, most: int = 300) -> str:
    """The first line of what an error says, up to `most` characters and without a full stop; empty where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:most].rstrip(".") if lines else ""


class SpkidError(Exception):
    """Base of all errors that are reported as one line; `exit_code` is what the command ends with.

    What the message quotes, of files and of users, is escaped where a terminal would act on it, and URLs are masked.

    `everywhere` is set where all processes of a job raise the same error together, so that one of them can report it;
    `is_said` where what went wrong has been said already.
    """

    exit_code = EXIT_FAILED
    everywhere = False
    is_said = False

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(masked(message)))


class InputError(SpkidError):
    """A file or folder is missing, damaged or not what was expected."""


class StoreError(InputError):
    """A remote store can't be reached or refuses, so that nothing is known of what it holds."""


class UsageError(SpkidError):
    """An option has a value that it can't have."""

    exit_code = EXIT_USAGE


class Stopped(SpkidError):  # noqa: N818 - it is no error
    """A job was told to stop, and has: what it saved can be continued."""

    exit_code = EXIT_STOPPED
