# SPDX-License-Identifier: Apache-2.0
"""Everything a checkpoint needs to come alive: the norm, the surgery, the configs and the models."""
