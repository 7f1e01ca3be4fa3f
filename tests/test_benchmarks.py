"""The comparisons with others: what their numbers mean, and that no row comes from two that did different work."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.images import fresh_folder, sized_images
from benchmarks.side_by_side import Different, Row, Setting, check_close, compared, failed, in_turns
from benchmarks.table import BEGIN, END, HEAD, draw_table, newest, with_tables
from tests.conftest import REPOSITORY, draw
from toolkit.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    (tmp_path / "written").mkdir()
    return Setting(CPU, tmp_path / "written", rounds=1)


def row(**changes) -> Row:
    """100 units; by round ours takes 1, 2 and 4 s, the other 4, 4 and 4."""
    made = compared("part", "small", "other 1.0", "images/s", 100, [4.0, 4.0, 4.0], [1.0, 2.0, 4.0], "bitwise", 1.5)
    return replace(made, **changes)


class TestArithmetic:
    def test_the_ratio_is_the_median_of_the_rounds(self):
        """Of 5, 1/2 and 4; the ratio of the medians would be 5 / 2."""
        made = compared("part", "", "", "", 30, [5.0, 1.0, 8.0], [1.0, 2.0, 2.0], "")
        assert (made.ratio, made.lowest, made.highest, made.rounds) == (4.0, 0.5, 5.0, 3)
        assert (made.ours, made.theirs) == (15.0, 6.0)

    def test_rounds_that_do_not_match_are_refused(self):
        with pytest.raises(ValueError):
            compared("part", "", "", "", 1, [1.0, 1.0], [1.0], "")

    def test_ways_take_turns_and_only_their_own_time_counts(self):
        """A clock that only the work moves: by 1 and by 10, and by 1000 in the first turns, which warm up."""
        done, now = [], [0]

        def work(name: str, step: int) -> None:
            done.append(name)
            now[0] += step * (1000 if len(done) <= 2 else 1)

        ways = {"a": lambda: work("a", 1), "b": lambda: work("b", 10)}
        assert in_turns(ways, 3, lambda: now[0]) == {"a": [1, 1, 1], "b": [10, 10, 10]}
        assert done == ["a", "b"] * 4

    def test_the_clock_counts_this_process_alone(self, setting):
        start = setting.clock()
        torch.randn(256, 256).matmul(torch.randn(256, 256))
        assert setting.clock() > start


class TestGate:
    def test_the_difference_is_a_share_of_the_largest_value(self):
        assert check_close("x", torch.tensor([1.0, 200.0]), torch.tensor([2.0, 200.0]), 0.01) == pytest.approx(0.005)

    @pytest.mark.parametrize(
        "wrong, message",
        [
            (torch.tensor([0.0, 4.0]), "x differs by 2.5e-01 of its largest value, more than 1e-01"),
            (torch.tensor([1.0, float("nan")]), "x differs by nan"),
            (torch.tensor([[1.0, 4.0]]), "x has shape"),
        ],
    )
    def test_what_differs_gives_no_number(self, wrong, message):
        with pytest.raises(Different, match=message):
            check_close("x", wrong, torch.tensor([1.0, 4.0]), 0.1)

    def test_a_closed_gate_ends_its_part_only(self, setting, monkeypatch):
        class Part:
            def __init__(self, found):
                self.found = found

            def rows(self, setting):
                yield row(benchmark="first")
                if self.found:
                    raise Different(self.found)

        parts = {"benchmarks.step": Part("losses differ"), "benchmarks.loading": Part("")}
        monkeypatch.setattr(command, "import_module", parts.__getitem__)
        found = list(command.measure(("step", "loading"), setting))
        assert [(one.benchmark, one.ratio is None) for one in found] == [
            ("first", False), ("step", True), ("first", False),
        ]  # fmt: skip
        assert found[1].parity == "FAILED: losses differ"


class TestRecord:
    def test_rows_measured_earlier_stay_unless_measured_again(self, tmp_path):
        file = tmp_path / "results" / "day.json"
        command.write(file, CPU, 1, [row(), row(point="large", ratio=2.0)])
        command.write(file, CPU, 1, [row(ratio=7.0), row(benchmark="another")])
        record = json.loads(file.read_text())
        assert [(one["benchmark"], one["point"], one["ratio"]) for one in record["rows"]] == [
            ("part", "large", 2.0), ("part", "small", 7.0), ("another", "small", 2.0),
        ]  # fmt: skip
        assert record["torch"] == torch.__version__ and record["threads"] == 1

    def test_unknown_parts_are_named(self):
        with pytest.raises(UserError, match="names out of step, loading"):
            command.BenchOptions(only="loading,lading")
        assert command.BenchOptions(only="loading, scoring").parts == ("loading", "scoring")

    def test_table(self):
        broken = failed("part", "large", "other", Different("no"))
        lines = draw_table([row(ours=1234.5, note="8 → 3"), broken]).splitlines()
        cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
        assert cells[0] == list(HEAD) and {len(line) for line in cells} == {len(HEAD)}
        rates = ["25 images/s", "1,234 images/s", "**2.00** (1.00–4.00)"]
        assert cells[2] == ["part", "small", "other 1.0", *rates, "bitwise", "8 → 3"]
        assert cells[3] == ["part", "large", "other", "", "", "", "FAILED: no", ""]


class TestImages:
    def test_drawn_ones_differ_and_are_as_heavy_as_photos(self, setting):
        drawn = list(sized_images(setting, 3, 128))
        assert {image.size for image in drawn} == {(128, 128)}
        assert len({image.tobytes() for image in drawn}) == 3
        drawn[0].save(setting.folder / "one.jpg", quality=95, subsampling=0)
        assert 9_000 < (setting.folder / "one.jpg").stat().st_size < 14_000

    def test_a_folder_kept_from_an_earlier_run_is_left_alone(self, setting):
        found = {fresh_folder(setting, "loading") for _ in range(2)}
        assert len(found) == 2 and all(folder.parent == setting.folder for folder in found)

    def test_photos_are_taken_if_there_are_enough(self, setting, tmp_path):
        for i in range(5):
            draw(i).save(tmp_path / f"{i}.png")
        given = replace(setting, photos=tmp_path)
        assert len({image.tobytes() for image in sized_images(given, 5, 16)}) == 5
        with pytest.raises(UserError, match="holds 5 images, this benchmark takes 6"):
            next(sized_images(given, 6, 16))


class TestLoading:
    @pytest.fixture(autouse=True)
    def loading(self, monkeypatch):
        """Originals of 256 px, shards of 64 px, samples in batches of 8."""
        pytest.importorskip("webdataset", reason="webdataset is not installed")
        from benchmarks import loading as module

        for name, value in (("ORIGINAL", 256), ("SIZE", 64), ("BATCH", 8), ("FEW_ROUNDS", 1)):
            monkeypatch.setattr(module, name, value)
        return module

    def test_every_row_passes_its_gate(self, loading, setting):
        found = list(loading.rows(setting, 16))
        assert ["jpg, " in one.point or "raw, " in one.point for one in found[:2]] == [True, True]
        assert len(found) == 4 and all(one.ratio > 0 and one.parity.startswith("equal pixels") for one in found)

    def test_each_way_delivers_every_sample(self, loading, setting):
        folder = loading.prepare(setting, 16)["png"]
        ways = [way(folder, setting, 2) for way in (loading.plain, loading.ours)]
        for stream in ways:
            captions = list(itertools.chain.from_iterable(captions for _, _, captions in stream))
            assert len(captions) == 32 and len(set(captions)) == 16

    @pytest.mark.parametrize(
        "corrupt, message",
        [
            (lambda image, vector: (image.roll(1, dims=1), vector), "pixels of"),
            (lambda image, vector: (image, vector.roll(1)), "the embedding of"),
            (lambda image, vector: (image + 1 / 127.5 * (image == image.min()), vector), "differ by 1 levels"),
        ],
    )
    def test_other_samples_give_no_number(self, loading, setting, monkeypatch, corrupt, message):
        plain = loading.plain

        def corrupted(*arguments, **options):
            for images, vectors, captions in plain(*arguments, **options):
                images[0], vectors[0] = corrupt(images[0], vectors[0])
                yield images, vectors, captions

        monkeypatch.setattr(loading, "plain", corrupted)
        with pytest.raises(Different, match=message):
            next(loading.rows(setting, 16))

    def test_a_missing_sample_gives_no_number(self, loading, setting):
        folder = loading.prepare(setting, 16)["jpg"]
        whole, half = (loading.by_caption(loading.plain(folder, setting, 1)) for _ in range(2))
        half.popitem()
        with pytest.raises(Different, match="15 samples here, 16 there"):
            loading.check_same(half, whole)

    def test_compression_is_forgiven_and_another_image_is_not(self, loading, setting):
        folders = loading.prepare(setting, 8)
        stored, exact = (loading.by_caption(loading.ours(folders[name], setting, 1)) for name in ("jpg", "png"))
        assert 0 < loading.check_same(stored, exact, loading.ONCE_MORE) < 30
        with pytest.raises(Different, match="pixels"):
            loading.check_same(stored, exact)
        (one, (_, vector)), (_, (second, _)), *_ = stored.items()
        with pytest.raises(Different, match="pixels"):
            loading.check_same(stored | {one: (second, vector)}, exact, loading.ONCE_MORE)


class TestEmbedding:
    @pytest.fixture(autouse=True)
    def embedding(self, tmp_path):
        pytest.importorskip("open_clip", reason="open_clip is not installed")
        from benchmarks import embedding as module
        from tests import tiny_clip

        tiny_clip.save_weights(tmp_path, 0)
        return module

    def test_captions(self, embedding):
        captions = embedding.write_captions(200)
        assert len(captions) == 200 and len(set(captions)) == 180
        assert captions == embedding.write_captions(200)

    def test_the_row_passes_its_gate(self, embedding, setting):
        (found,) = embedding.rows(setting, 40, "tiny-test")
        assert found.ratio > 0 and found.parity.startswith("unit vectors within")
        assert 12 <= found.details["mean_tokens"] <= 20

    def test_other_vectors_give_no_number(self, embedding, setting, monkeypatch):
        plain = embedding.plain
        monkeypatch.setattr(embedding, "plain", lambda *arguments: plain(*arguments).roll(1, dims=0))
        with pytest.raises(Different, match="unit vectors differ by"):
            list(embedding.rows(setting, 40, "tiny-test"))

    def test_half_precision_is_held_to_the_direction(self, embedding):
        exact = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=1)
        assert "1.000000" in embedding.check_vectors(exact.half().float(), exact, half=True)
        with pytest.raises(Different, match="cosine"):
            embedding.check_vectors(exact.roll(1, dims=1), exact, half=True)


class TestScoring:
    @pytest.fixture(autouse=True)
    def scoring(self):
        pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed")
        from benchmarks import scoring as module

        return module

    def test_frechet_distances_of_both_formulas_agree(self, scoring):
        generator = torch.Generator().manual_seed(0)
        sides = [scoring.statistics(torch.randn(200, 16, generator=generator) + shift) for shift in (0, 1)]
        assert scoring.by_root(*sides) == pytest.approx(scoring.frechet_distance(*sides), rel=1e-9)

    def test_other_scores_give_no_number(self, scoring, setting):
        case = scoring.Case(setting, 64, Path(), Path(), Path())
        assert scoring._check_scores(case, {"fid": 1.0001}, {"fid": 1.0}) == "scores within 1e-04"
        with pytest.raises(Different, match="fid differs"):
            scoring._check_scores(case, {"fid": 1.01}, {"fid": 1.0})


class TestReadme:
    def test_its_tables_are_those_of_the_committed_results(self):
        text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
        assert with_tables(text, newest()) == text and text.count(BEGIN) == text.count(END) == 1

    def test_only_the_newest_file_of_a_device_counts(self, tmp_path):
        for name in ("2026-01-02-a-gpu", "2026-11-01-a-gpu", "2026-02-01-2-cores", "building-2-cores"):
            (tmp_path / f"{name}.json").touch()
        assert [file.stem for file in newest(tmp_path)] == ["2026-02-01-2-cores", "2026-11-01-a-gpu"]
