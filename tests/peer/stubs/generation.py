# SPDX-License-Identifier: Apache-2.0
"""Stand-in for tests/generation/test_utils.py, which the source distribution of transformers leaves out."""


class GenerationTesterMixin:
    """No generation tests: `ModelTesterMixin` only demands this base of models that generate."""
