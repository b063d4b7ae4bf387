# SPDX-License-Identifier: Apache-2.0
"""What a card says about a normalization, and whom it cites. Formulas carry how sure they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NormFacts:
    """Formula and confidence are empty for norms that compress nothing."""

    text: str
    citation: str
    formula: str = ""
    confidence: str = ""


_IBNORM = """@article{zou2025ibnorm,
  title   = {IBNorm: Information-Bottleneck Inspired Normalization for Representation Learning},
  author  = {X. Zou and P. Zhou},
  journal = {arXiv preprint arXiv:2510.25262},
  year    = {2025}
}"""
_COMPRESSES = (
    "Every normalization layer compresses each activation toward the mean of its area by a bounded function g, then "
    "standardizes, then applies the learned affine."
)


def _ibnorm(formula: str, confidence: str) -> NormFacts:
    return NormFacts(_COMPRESSES, _IBNORM, formula, confidence)


_NORMS = {
    "ibnorm-l": _ibnorm("lambda g(d / lambda), g(u) = sign(u) ln(1 + |u|)", "high confidence"),
    "ibnorm-t": _ibnorm("lambda g(d / lambda), g(u) = tanh(u)", "high confidence"),
    "ibnorm-s": _ibnorm(
        "lambda g(d / lambda), g(u) = u / (1 + |u|)", "low confidence: the paper says only that it saturates"
    ),
    "ibnorm-sqrt": _ibnorm(
        "lambda g(d / lambda), g(u) = 2 sign(u) (sqrt(1 + |u|) - 1)", "low confidence: another reading of IBNorm-S"
    ),
    "layernorm": NormFacts(
        "A baseline: LayerNorm in every place.",
        """@article{ba2016layer,
  title   = {Layer Normalization},
  author  = {Jimmy Lei Ba and Jamie Ryan Kiros and Geoffrey E. Hinton},
  journal = {arXiv preprint arXiv:1607.06450},
  year    = {2016}
}""",
    ),
    "rmsnorm": NormFacts(
        "A baseline: RMSNorm in every place.",
        """@inproceedings{zhang2019root,
  title     = {Root Mean Square Layer Normalization},
  author    = {Biao Zhang and Rico Sennrich},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2019}
}""",
    ),
    "dyt": NormFacts(
        "A baseline: Dynamic Tanh, an elementwise function without statistics, in place of every normalization.",
        """@article{zhu2025transformers,
  title   = {Transformers without Normalization},
  author  = {Jiachen Zhu and Xinlei Chen and Kaiming He and Yann LeCun and Zhuang Liu},
  journal = {arXiv preprint arXiv:2503.10622},
  year    = {2025}
}""",
    ),
    "normalnorm": NormFacts(
        "A baseline: NormalNorm, which standardizes and then transforms toward normality.",
        """@article{eftekhari2025normality,
  title   = {On the Importance of Gaussianizing Representations},
  author  = {Daniel Eftekhari and Vardan Papyan},
  journal = {arXiv preprint arXiv:2505.00685},
  year    = {2025}
}""",
    ),
}
_NORMS["normalnorm-noiseless"] = _NORMS["normalnorm"]
_OTHER = NormFacts("The normalization of the original architecture, unchanged.", "")


def norm_facts(norm_type: str | None) -> NormFacts:
    """What there is to say about a norm_type; None, or one that is not known here, is the architecture's own."""
    return _NORMS.get(str(norm_type), _OTHER)
