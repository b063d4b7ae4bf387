# SPDX-License-Identifier: Apache-2.0
"""Every sentence with which a command ends is found on the page."""

import re

from ibnorm_hf.common.errors import UserError
from ibnorm_hf.training.keys.recipe import load_recipe

from . import sentences


def test_the_index_is_what_the_sources_say():
    text = sentences.PAGE.read_text(encoding="utf-8")
    index = text.split(sentences.START)[1].split(sentences.END)[0].strip()
    assert index == sentences.render(), "write it anew: python -m tests.sentences"
    assert index.count("\n- ") > 250


def test_a_sentence_that_was_met_is_found_by_its_words(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("norm_tipe: ibnorm-l\n")
    try:
        load_recipe(str(recipe), [])
    except UserError as error:
        met = str(error)
    index = [line for lines in sentences.sentences().values() for line in lines]
    assert any(re.search(".*".join(map(re.escape, line.split(sentences.GAP))), met) for line in index), met
