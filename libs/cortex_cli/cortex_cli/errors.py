"""What goes wrong for the user of the command line."""


class CliError(Exception):
    """A command cannot do its work; the text, one line, is all that the user needs."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code
