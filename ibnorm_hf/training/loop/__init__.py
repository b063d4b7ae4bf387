# SPDX-License-Identifier: Apache-2.0
"""The training loop: order of samples, decay groups, callbacks, sharding."""
