"""The table, the plot, and several results made one."""

import pytest
from PIL import Image

from benchmarks.ablate import __main__ as command
from benchmarks.ablate.plot import curve, draw_plot
from benchmarks.ablate.results import Results, merge, read
from benchmarks.ablate.table import draw_table, ranked
from tests.ablate.made import made, results_of
from toolkit.errors import UserError


@pytest.fixture
def results() -> Results:
    found = results_of({"base": [50.0, 51.0, 52.5], "good": [40.0, 42.0, 41.0], "bad": [60.0, 61.0, 59.5]})
    found.floor = {"count": 64, "scores": {"fid_64": 3.25}}
    for run in found.of("good"):
        run |= {"options": {"loss": "nonsaturating"}, "seconds_per_kimg": 6.0, "findings": {"collapse": 2}}
    return found


def test_table(results):
    lines = draw_table(results).splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert {len(row) for row in rows} == {len(rows[0])} and rows[0][3] == "fid_64 ↓"
    base, good, bad, floor = rows[2:]
    assert base[:4] == ["**base** (control)", "", "3", "51.17 ± 1.3"]
    assert good[:4] == ["good", "loss nonsaturating", "3", "41 ± 1 (-10.2, **better**)"]
    assert good[4:] == ["0.1 ± 0 (+0)", "6 (x 1.50)", "2.5 M + 1 k", "3 G + 12", "collapse 3/3"]
    assert bad[3] == "60.17 ± 0.76 (+9, **worse**)" and floor[3] == "3.25"
    assert "- what 3 seeds can show of 2 variants at all: differences of some 2.9 deviations (with 5 seeds 1.7)" in (
        "\n".join(lines)
    )


def test_what_seeds_can_show_is_told_of_those_measured(results):
    """Not of those the grid has planned."""
    results.runs = [run for run in results.runs if run["seed"] == 0 or run["variant"] == "base"]
    text = draw_table(results)
    assert "seeds can show" not in text and "- fewer than 3 seeds: only a difference many times the noise" in text
    results.runs = []
    assert "seeds" not in draw_table(results).split("findings:")[1]


def test_seconds_of_two_devices_are_not_compared(results):
    for run in results.of("good"):
        run["device"] = "2 CPU cores"
    assert "6 (on another device)" in draw_table(results)


def test_the_best_come_first(results):
    assert ranked(results) == ["good", "bad"]
    results.grid["control"] = "good"
    assert ranked(results) == ["base", "bad"]


def test_curves_are_means_with_their_range(results):
    assert curve(results, "good", "fid_64", "images_seen") == [(0.064, 82, 80, 84), (0.128, 41, 40, 42)]
    assert [point[0] for point in curve(results, "good", "fid_64", "training_seconds")] == [2, 4]


def test_the_plot_of_twenty_variants_is_drawn_and_most_of_them_are_grey(tmp_path):
    many = {"base": [50.0, 51.0]} | {f"variant_{i:02d}": [40.0 + i, 42.0 + i] for i in range(20)}
    draw_plot(results_of(many), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert image.size[0] > 1000
        colours = {colour for count, colour in image.convert("RGB").getcolors(2**24) if count > 100}
    assert (0, 0, 0) in colours and (31, 119, 180) in colours and (191, 191, 191) in colours
    assert [path.name for path in tmp_path.iterdir()] == ["plot.png"]


def test_a_variant_of_failed_runs_alone_does_not_end_the_drawing(results, tmp_path):
    results.put(made("bad", 0, 0.0, status="failed", points=[], reason="diverged"))
    results.runs = [run for run in results.runs if run["variant"] != "bad" or run["status"] == "failed"]
    draw_plot(results, tmp_path / "plot.png")
    assert "| bad |  | 0 + 1 failed | – |" in draw_table(results)


def test_committed_results_are_drawn_again_and_several_become_one(results, tmp_path, capsys):
    other = results_of({"base": [50.0, 51.0, 52.5], "more": [30.0, 31.0, 32.0]})
    results.write(tmp_path / "one")
    other.write(tmp_path / "two")
    command.main(command.AblateOptions([str(tmp_path / "one"), str(tmp_path / "two" / "results.json")], table=True))
    text = (tmp_path / "one" / "table.md").read_text(encoding="utf-8")
    assert text.strip() == capsys.readouterr().out.strip()
    assert [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")][2:6] == [
        "**base** (control)", "good", "bad", "more",
    ]  # fmt: skip
    assert (tmp_path / "one" / "plot.png").is_file() and len(read(tmp_path / "one").runs) == 9


def test_what_does_not_compare_is_not_merged(results, tmp_path):
    results.write(tmp_path / "one")
    for name, change in (("two", {"definition": "other"}), ("three", {})):
        other = results_of({"base": [1.0]})
        other.runs[0] |= change
        other.grid["kimg"] = 0.128 if change else 7
        other.write(tmp_path / name)
    with pytest.raises(UserError, match="variant base is another training than in"):
        merge([tmp_path / "one", tmp_path / "two"])
    with pytest.raises(UserError, match="differ in kimg"):
        merge([tmp_path / "one", tmp_path / "three"])


def test_arguments():
    assert command.paths_first(["g.yaml", "--out", "o"]) == ['--paths=["g.yaml"]', "--out", "o"]
    assert command.paths_first(["--table", "a", "b", "--out", "o"]) == [
        '--paths=["a", "b"]', "--table", "--out", "o",
    ]  # fmt: skip
    with pytest.raises(UserError, match="one grid file"):
        command.AblateOptions([])
