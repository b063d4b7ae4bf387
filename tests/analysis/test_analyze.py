# SPDX-License-Identifier: Apache-2.0
"""`ibnorm-hf analyze`: what it hands on, and what it refuses in one sentence."""

from ibnorm_hf import cli
from ibnorm_hf.analysis import densities


def test_densities_are_drawn_where_they_were_asked_for(tmp_path, monkeypatch, capsys):
    asked = []

    def draw(folder, *, seed):
        asked.append((folder, seed))
        return [tmp_path / "figure1.png"]

    monkeypatch.setattr(densities, "draw_densities", draw)
    assert cli.main(["analyze", "--densities", "--out", str(tmp_path), "--seed", "3"]) == 0
    assert asked == [(str(tmp_path), 3)]
    assert capsys.readouterr().out == f"{tmp_path / 'figure1.png'}\n"


def test_a_file_for_a_folder_and_a_negative_seed_are_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["analyze", "--densities", "--out", str(tmp_path / "file")]) == 2
    assert "cannot write here" in capsys.readouterr().err
    assert cli.main(["analyze", "--densities", "--out", str(tmp_path), "--seed", "-1"]) == 2
    assert "--seed -1" in capsys.readouterr().err
