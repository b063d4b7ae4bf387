# SPDX-License-Identifier: Apache-2.0
"""The fair comparison: one baseline, several norms, and the same grid, seeds and budgets for all of them."""
