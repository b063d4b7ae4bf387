# SPDX-License-Identifier: Apache-2.0
"""What of this folder is not for this process: it runs inside the unpacked source distribution."""

collect_ignore = ["suite", "stubs"]
