# SPDX-License-Identifier: Apache-2.0
"""A run's folder: its lock, its checkpoints, what it records, and how it fails."""
