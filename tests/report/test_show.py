"""What a notebook shows of a table, and when its picture is saved."""

import pandas as pd
import pytest

import lapnb
from lapnb.report import show as page
from lapnb.report.compare import one_source
from lapnb.runs.rows import results_file

BOTH = {"mp": [60.0, 62.0, 95.0], "lap": [33.0, 31.0, 45.0], "lbp": [50.0, 52.0, 51.0]}


@pytest.fixture
def results(made):
    return pd.concat([made(BOTH, nth=0), made(BOTH)])


def test_side_by_side_has_lap_and_the_difference_first(made, results):
    table = page.side_by_side(one_source(results))
    difference = "LAP − MP [95 %]"
    assert [*table] == ["sparsity (%)", "surviving (%)", "MP", "LAP", difference, "LBP"]
    assert table["surviving (%)"].tolist() == ["6.25", "0.098"]
    assert table["sparsity (%)"].tolist() == ["93.75", "99.902"]
    assert table.LAP[1] == "**36.33 ± 7.57** | 16.45 ± 5.61"
    assert table[difference][1] == "−36.00 [−66.53, −5.47]"
    assert page.side_by_side(one_source(made({"mp": [1.0]}, "fcn_global"))).MP[0] == "1.00"


def test_show_gives_everything_as_text_and_for_a_notebook(results, capsys, monkeypatch):
    lapnb.show(results)
    text = capsys.readouterr().out
    for words in ("FCN on MNIST", "LAP beats MP: reproduced at 0.098 %", lapnb.caption(results)):
        assert words.split(" · bars")[0] in text
    assert "verdict (paper scale)" in text and "no seed of LFP and MP" in text
    assert "Test error (%): ours | published, the best of a row in bold\n" in text
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    lapnb.show(results)
    numbers, picture, claims = shown
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert f"{numbers._repr_markdown_()}\n{picture!r}\n{claims._repr_markdown_()}\n" == text


def test_a_picture_is_saved_for_exactly_the_runs_of_the_results_file(record, lapnb_root):
    def saved():
        pictures = [path for path in lapnb_root.rglob("*.png")]
        for path in pictures:
            path.unlink()
        return len(pictures)

    record(BOTH, "fcn_mnist", "reduced")
    rows = lapnb.recorded("fcn_mnist", "reduced")
    lapnb.show("fcn_mnist")
    assert not saved()  # looking at what is recorded changes no file
    for part in (rows[rows.method != "mp"], rows[rows.seed < 2], rows.assign(seed=rows.seed + 1)):
        lapnb.show(part)
        assert not saved()
    lapnb.show(rows.sample(frac=1))
    assert results_file("fcn_mnist", "reduced").with_suffix(".png") and saved() == 1


def test_a_column_that_is_not_recorded_is_refused_by_name_too(record):
    record(BOTH, "fcn_mnist", "paper")
    with pytest.raises(ValueError, match=r"column must be one of error, .*; got 'distortion'"):
        lapnb.show("fcn_mnist", "distortion")


def test_a_name_shows_each_recorded_scale_the_largest_first(record, capsys):
    lapnb.show("fcn_mnist")
    assert "Not run on MNIST yet" in capsys.readouterr().out
    for scale in ("reduced", "paper", "quick"):
        record(BOTH, "fcn_mnist", scale)
    lapnb.show("fcn_mnist")
    text = capsys.readouterr().out
    assert text.index("(paper scale)") < text.index("(reduced scale)") and "(quick" not in text


def test_result_of_a_table_without_claims_names_the_method_that_is_ahead(made):
    rows = made({"lap": [5.0]}, "fcn_later_criteria")
    rows.loc[rows.scope == "global", "error"] = 4.0
    assert (
        page.result(rows)
        == "Lowest at 0.098 % of the weights: LAP, global, 4.00 (paper scale, n = 1)"
    )
