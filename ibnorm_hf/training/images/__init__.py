# SPDX-License-Identifier: Apache-2.0
"""Images: where they come from and how they are varied."""
