# SPDX-License-Identifier: Apache-2.0
"""``python -m ibnorm_hf.evaluation run --model ibnorm ...``: the stock ``lm-eval`` command that also knows ``ibnorm``.

Every sub-command and argument is the harness's own and reaches it untouched.
"""

from __future__ import annotations

import sys

from ..common.errors import UserError


def main() -> int:
    """Exit code of the harness; 2 with one line for a mistake of the user."""
    try:
        from lm_eval.__main__ import cli_evaluate

        from . import harness_model  # noqa: F401  registers the model
        from .ifeval import refuse_without_sentence_model

        refuse_without_sentence_model(sys.argv[1:])
        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
