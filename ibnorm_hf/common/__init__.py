# SPDX-License-Identifier: Apache-2.0
"""What every room may use: errors, files, the cache, packed blocks; imports nothing of ours."""
