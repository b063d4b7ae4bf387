# SPDX-License-Identifier: Apache-2.0
"""Two processes train a swapped model for a step and save it: FOLDER/base, a host's own weights, to FOLDER/saved.

Each also writes its weights to FOLDER/state-RANK.pt. They are compared from there and not by `all_gather`:
a gloo thread that still frees gathered tensors waits for the interpreter's lock, while the destructor of the
wrapper holds that lock and waits for the thread, and the process hangs for ever at its end.
"""

import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from ibnorm_hf import replace_norms


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    model = AutoModelForCausalLM.from_pretrained(f"{folder}/base")
    replace_norms(model, "ibnorm-t", norm_lambda=1)
    shared = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(shared.parameters(), lr=0.1)
    ids = torch.arange(1, 8)[None] + dist.get_rank()
    shared(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    if dist.get_rank() == 0:
        shared.module.save_pretrained(f"{folder}/saved")
    torch.save(model.state_dict(), f"{folder}/state-{dist.get_rank()}.pt")
    dist.barrier()
    del shared  # the wrapper goes before its group
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
