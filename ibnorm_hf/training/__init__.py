# SPDX-License-Identifier: Apache-2.0
"""From a recipe to a run folder: arguments, corpora, packing, training, checkpoints.

Nothing is imported here, so that ``ibnorm_hf.common.errors`` costs nothing. The entry points are
``ibnorm_hf.training.job.pretrain`` and ``ibnorm_hf.training.text.prepare.prepare_data``.
"""
