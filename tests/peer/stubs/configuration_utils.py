# SPDX-License-Identifier: Apache-2.0
"""Stand-in for tests/utils/test_configuration_utils.py, which the source distribution of transformers leaves out.

`ConfigTester` builds a config from these and expects to read each one back, so none may be the default.
"""

config_common_kwargs = {
    "return_dict": False,
    "output_hidden_states": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 3,
    "architectures": ["SomeModel"],
    "id2label": {0: "no", 1: "yes", 2: "maybe"},
    "label2id": {"no": 0, "yes": 1, "maybe": 2},
    "problem_type": "regression",
    "is_encoder_decoder": True,
}
