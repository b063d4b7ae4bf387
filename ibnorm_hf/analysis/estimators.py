# SPDX-License-Identifier: Apache-2.0
"""The names of the estimators that a command may ask for; read before anything heavy is imported."""

ESTIMATORS = ("usable", "channel", "renyi", "soft", "neighbours")
