# SPDX-License-Identifier: Apache-2.0
"""Where text comes from, a file a kind: `base` is what they all are, `registry` finds the one that a recipe names."""
