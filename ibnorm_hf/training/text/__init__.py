# SPDX-License-Identifier: Apache-2.0
"""Text: from sources to packed blocks on disk."""
