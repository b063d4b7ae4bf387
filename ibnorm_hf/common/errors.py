# SPDX-License-Identifier: Apache-2.0
"""The one exception that a user is meant to read."""


class UserError(ValueError):
    """Something the user can put right: a recipe key, a file, a folder, a checkpoint, a token.

    The message is one sentence that says what is wrong, where, and what to do. The command line
    prints it without a traceback and exits with ``exit_code``: 2 for a mistake in what was asked,
    1 for a job that failed on the way (a loss that became nan, an upload that broke off).
    """

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
