"""The error that a user can mend."""


class UserError(ValueError):
    """Something that the user got wrong and can mend.

    The commands in ``tools/`` print it as two lines, without a traceback, and exit with status 2.

    Args:
        cause: One line: what was got, and what is allowed.
        remedy: One line: how to mend it.
    """

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(f'{cause}\n{remedy}')
        self.cause = cause
        self.remedy = remedy
