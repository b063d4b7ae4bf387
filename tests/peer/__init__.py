# SPDX-License-Identifier: Apache-2.0
"""transformers' own model tests, unmodified, run on ibnorm_hf's models and on the vanilla ones beside them.

    pytest tests/peer                                the verdict (two processes, a few minutes)
    IBNORM_PEER_NORM_TYPE=layernorm pytest tests/peer   the same for another norm

`source.py` fetches and checks the source distribution of the installed transformers, `run.py` runs its tests,
`suite/` holds what its tests need from a model (a small config and inputs), `test_peer.py` judges.
"""
