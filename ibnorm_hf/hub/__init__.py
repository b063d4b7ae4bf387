# SPDX-License-Identifier: Apache-2.0
"""Publishing: exports that load anywhere, cards made of a run's files, upload.

A run is a folder of files, and this room knows it by those files alone.
"""
