# SPDX-License-Identifier: Apache-2.0
"""`accelerate launch recipes/train_vision.py RECIPE [--key value ...]`: `ibnorm-hf pretrain` on a recipe of images.

The run folder is that of every run: config.yaml, metrics.jsonl, checkpoint-N/, model/, data.json, environment.json,
loss.png, eval/validation.json. Beside them eval/robustness.json and eval/robustness.png hold top-1, top-5, loss and
calibration error on clean validation images and under noise, blur and contrast of five severities.
"""

import sys

from ibnorm_hf.cli import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", *sys.argv[1:]]))
