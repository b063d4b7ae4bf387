# SPDX-License-Identifier: Apache-2.0
"""``UserError`` stands in ``ibnorm_hf.errors``, where publishing and evaluation share it."""

from ..errors import UserError

__all__ = ["UserError"]
