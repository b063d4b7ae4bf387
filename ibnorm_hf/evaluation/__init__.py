# SPDX-License-Identifier: Apache-2.0
"""Measuring a model: lm-evaluation-harness tasks, Open LLM Leaderboard II scores, perplexity.

Nothing is imported here, so that the parts that need no torch (``leaderboard``) stay quick. See README.md beside this
file for the commands.
"""
