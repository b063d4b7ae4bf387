# SPDX-License-Identifier: Apache-2.0
"""What a recipe may ask: the keys, their rules, and the reader of recipes."""
