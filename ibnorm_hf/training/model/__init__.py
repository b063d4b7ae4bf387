# SPDX-License-Identifier: Apache-2.0
"""The model that a recipe names, and which part of it trains."""
