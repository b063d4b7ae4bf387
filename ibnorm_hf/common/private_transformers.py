# SPDX-License-Identifier: Apache-2.0
"""The private parts of transformers that this package relies on, in one place; seen in 5.17 to 5.23.

A part that is gone is an ImportError here, with its name, not a run that quietly does something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import Trainer, masking_utils

# Methods of Trainer that ours overrides. That they are still *called* is checked by what they leave behind.
OVERRIDDEN = (
    "_get_train_sampler",
    "_get_grad_norm",
    "_save",
    "_save_checkpoint",
    "_save_optimizer_and_scheduler",
    "_load_from_checkpoint",
    "_load_optimizer_and_scheduler",
    "_load_rng_state",
    "_load_scaler",
    "get_batch_samples",
    "get_decay_parameter_names",
    "floating_point_ops",
)


def require(owner: object, names: tuple[str, ...], library: str, seen: str) -> None:
    """Raise ImportError if one of the private ``names`` of a library is gone."""
    gone = [name for name in names if not hasattr(owner, name)]
    if gone:
        where = getattr(owner, "__name__", type(owner).__name__)
        raise ImportError(
            f"{where} of the installed {library} has no {', '.join(gone)} any more, which this version of ibnorm_hf "
            f"relies on; install {library} {seen}"
        )


require(Trainer, OVERRIDDEN, "transformers", "5.17 to 5.23")
require(masking_utils, ("find_packed_sequence_indices",), "transformers", "5.17 to 5.23")


@contextmanager
def one_sequence_a_row() -> Iterator[None]:
    """Spare the search for several packed sequences in a row, for which every forward pass waits for its device.

    Blocks are read as one sequence each, which the search would find as well.
    """
    real = masking_utils.find_packed_sequence_indices
    masking_utils.find_packed_sequence_indices = lambda position_ids: None
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = real
