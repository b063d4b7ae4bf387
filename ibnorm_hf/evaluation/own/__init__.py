# SPDX-License-Identifier: Apache-2.0
"""Evaluations of our own: a file is a task of `ibnorm-hf eval` by its name, with ``measure`` and ``summary``."""
