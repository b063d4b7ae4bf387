# SPDX-License-Identifier: Apache-2.0
"""For every rule of fairness a study that breaks this rule alone."""

from dataclasses import replace

import pytest

from ibnorm_hf.studies.fairness import chosen_rates, unfairness
from ibnorm_hf.studies.verdict import judge_rows

from .fakes import RATES, fake_rows

TRUTH = {"base": 3.0, "b": 2.5}
FACTS = dict(
    tokens=1000, parameters=10, whole=False, data_sha256="d", evaluation_sha256="e", decay_sha256="g", code_sha256="c"
)


def fair(**more):
    return fake_rows(TRUTH, random=0, **(FACTS | more))


def changed(rows, test, **values):
    return [replace(row, **values) if test(row) else row for row in rows]


def b_claims(row):
    return row.arm == "b" and row.phase == "claim"


def tuned(row):
    return row.phase == "tuning"


UNFAIR = {
    "order of samples": (lambda r: changed(r, lambda x: b_claims(x) and x.seed == 3, data_sha256="x"), "order differ"),
    "tokens": (lambda r: changed(r, lambda x: x.arm == "b", tokens=999), "the tokens differ between b and base"),
    "decay": (lambda r: changed(r, lambda x: x.arm == "b", decay_sha256="x"), "parameters that decay differ"),
    "parameters": (lambda r: changed(r, lambda x: x.arm == "b", parameters=11), "by more than their norms"),
    "evaluation": (lambda r: changed(r, b_claims, evaluation_sha256="x"), "evaluation sets differ"),
    "code": (lambda r: changed(r, b_claims, code_sha256="x"), "code versions differ"),
    "grid": (
        lambda r: [x for x in r if not (x.arm == "b" and tuned(x) and x.learning_rate == RATES[0])],
        "grids differ",
    ),
    "trials": (lambda r: [x for x in r if not (x.arm == "base" and x.seed == 102)], "grids differ"),
    "seeds overlap": (lambda r: changed(r, lambda x: x.phase == "claim" and x.seed == 0, seed=101), "seed 101 is used"),
    "edge": (
        lambda r: changed(r, lambda x: x.arm == "b" and tuned(x) and x.learning_rate == RATES[2], value=1.0),
        "the highest of its grid",
    ),
    "few seeds": (lambda r: [x for x in r if not (b_claims(x) and x.seed == 4)], "b has 4 claim seeds"),
    "other seeds": (
        lambda r: [replace(x, seed=x.seed + 50) if b_claims(x) else x for x in r],
        "share 0 claim seeds",
    ),
    "no tuning": (lambda r: [x for x in r if not tuned(x)], "was not tuned"),
    "another rate": (lambda r: changed(r, b_claims, learning_rate=RATES[0]), "where tuning found 0.003 to be the best"),
}


def test_a_fair_study_is_ranked():
    assert unfairness(fair(), "base") == []
    assert judge_rows(fair(), "base", 0.01)["arms"]["b"]["verdict"] == "better"


@pytest.mark.parametrize("rule", UNFAIR)
def test_an_unfair_study_is_refused_in_a_sentence_and_nothing_is_ranked(rule):
    break_it, sentence = UNFAIR[rule]
    report = judge_rows(break_it(fair()), "base", 0.01)
    assert any(sentence in reason for reason in report["refused"]), report["refused"]
    assert all(len(reason) < 200 and "\n" not in reason for reason in report["refused"])
    ranked = [found for budget in report["budgets"].values() for found in budget["arms"].values()]
    assert ranked and not {arm["verdict"] for arm in ranked} & {"better", "worse"}


def test_each_rule_is_broken_alone():
    for rule, (break_it, sentence) in UNFAIR.items():
        others = [reason for reason in unfairness(break_it(fair()), "base") if sentence not in reason]
        # Without tuning, with a grid that lacks a point, or with another best rate more than one rule speaks.
        assert not others or rule in ("no tuning", "grid", "trials", "edge"), (rule, others)


def test_parameters_of_unknown_norms_may_differ_by_a_hundredth():
    rows = [replace(row, whole=True, parameters=1000 + 5 * (row.arm == "b")) for row in fair()]
    assert unfairness(rows, "base") == []
    rows = [replace(row, parameters=1000 + 20 * (row.arm == "b")) for row in rows]
    assert "by more than their norms" in unfairness(rows, "base")[0]


def test_an_ablation_needs_no_tuning_but_all_other_rules_hold():
    rows = [row for row in fair() if not tuned(row)]
    assert unfairness(rows, "base", tuned=False) == []
    assert unfairness(changed(rows, b_claims, tokens=1), "base", tuned=False)


def test_a_tie_goes_to_the_lower_rate_and_a_diverged_rate_is_never_chosen():
    rows = [replace(row, value=1.0) for row in fair() if tuned(row)]
    assert chosen_rates(rows)["b", 1.0] == (RATES[0], None)
    rows = changed(rows, lambda x: x.learning_rate == RATES[0] and x.seed == 101, value=float("inf"))
    assert chosen_rates(rows)["b", 1.0] == (RATES[1], None)
