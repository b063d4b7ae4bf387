# SPDX-License-Identifier: Apache-2.0
"""What reaches a terminal."""

from types import SimpleNamespace

from ibnorm_hf import cli
from ibnorm_hf.analysis import loss_curve
from ibnorm_hf.common.errors import printable


def test_nothing_printed_controls_the_terminal(capsys, monkeypatch):
    assert printable("a\x1b[31mb\x07\n\tc\x9bd größer ☃") == "a\ufffd[31mb\ufffd c\ufffdd größer ☃"
    monkeypatch.setattr(loss_curve, "plot_loss_curve", lambda folder, **options: None)
    validation = {"loss": 1.0, "perplexity": 2.0, "bits_per_byte": 1.0}
    result = SimpleNamespace(found=False, validation=validation, per_s=None, sample="x\x1b]0;title\x07", folder="run")
    cli._tell(SimpleNamespace(found=False, repo_id=None), result)
    assert "\x1b" not in (out := capsys.readouterr().out) and "x\ufffd]0;title\ufffd" in out
