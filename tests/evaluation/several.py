# SPDX-License-Identifier: Apache-2.0
"""`ibnorm-hf eval` as a program that a launcher starts in several processes."""

import sys

from ibnorm_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
