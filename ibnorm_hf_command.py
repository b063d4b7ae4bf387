# SPDX-License-Identifier: Apache-2.0
"""The program `ibnorm-hf`: `ibnorm_hf.cli`, whose help answers before torch and transformers are loaded.

`import ibnorm_hf` makes transformers know our model types, which takes seconds; where this module is what started the
process, each job does so itself. It stands outside the package because importing anything in it imports the package.
"""

import sys


def main() -> int:
    """Run the command line of this process and return its exit code."""
    from ibnorm_hf.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
