# SPDX-License-Identifier: Apache-2.0
"""`accelerate launch recipes/finetune.py RECIPE --pretrained MODEL [--key value ...]`: as `ibnorm-hf finetune`."""

import sys

from ibnorm_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
