# SPDX-License-Identifier: Apache-2.0
"""What can be read from runs and activations: plots, densities, information, comparisons."""
