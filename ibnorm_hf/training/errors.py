# SPDX-License-Identifier: Apache-2.0
"""The exception that a user is meant to read; it is shared by all rooms and lives in ``ibnorm_hf.errors``."""

from ..errors import UserError as UserError
