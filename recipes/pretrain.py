# SPDX-License-Identifier: Apache-2.0
"""`accelerate launch recipes/pretrain.py RECIPE [--key value ...]`: the same job as `ibnorm-hf pretrain`."""

import sys

from ibnorm_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
