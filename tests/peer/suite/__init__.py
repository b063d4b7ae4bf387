# SPDX-License-Identifier: Apache-2.0
"""What transformers' tests need from us. Copied into the unpacked source distribution as `tests.peer`."""
