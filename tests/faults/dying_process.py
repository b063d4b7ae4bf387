# SPDX-License-Identifier: Apache-2.0
"""The main job, in which process 1 is killed within the fifth step."""

import os
import signal
import sys

from ibnorm_hf.cli import main
from ibnorm_hf.training.loop.trainer import PretrainTrainer

_real = PretrainTrainer.training_step


def _step(self, *words):
    if self.state.global_step == 4 and self.args.process_index == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return _real(self, *words)


if __name__ == "__main__":
    PretrainTrainer.training_step = _step
    sys.exit(main(["pretrain", *sys.argv[1:]]))
