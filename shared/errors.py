"""The one exception for input that can't be used. It has no dependencies, so anything may import it."""


class InputError(ValueError):
    """What the user gave can't be used: a missing data set, a broken file, the wrong checkpoint.

    The message is one sentence that names the file, says what was expected and found, and what to do.
    The command line prints it without a traceback and exits with code 2 (`shared.cli.main`).
    """
