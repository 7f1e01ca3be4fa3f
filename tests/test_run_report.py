"""The page about a run: its images and numbers, hostile and damaged files, and what a browser makes of it."""

import base64
import io
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from evaluation.report import __main__ as report
from evaluation.report import curves, timeline
from evaluation.report.overview import duration
from evaluation.report.run_record import read_run
from evaluation.run_scores.reading import read_evaluations
from evaluation.run_scores.score_names import TITLES, in_order, interval, parse, spread
from evaluation.scoring.scores import METRICS
from tests.running import train
from tests.test_report import Page
from toolkit.command_line import dump
from toolkit.config import ResolvedConfig
from toolkit.errors import UserError
from toolkit.run_folder.captioned_grid import draw_captioned_grid

HOSTILE = "<script>alert('x')</script><img src=\"http://x.example/y\" onerror=z> & \u202eevil </bdi></td></table>"
MAGENTA = (255, 0, 255)


@pytest.fixture(scope="module")
def trained(shard_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 steps at 16 px: samples at 2 and 4, a grid of 4 and 2 images, scores, events."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    train(shard_folder, run, iters=4, sample_every=2, ckpt_every=2, score="swd", score_count=16, lr_g=3e-4)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


@pytest.fixture
def unlogged(run: Path) -> Path:
    """The run without its log: a page's time goes into the curves of the training."""
    (run / "training_log.json").unlink()
    return run


def evaluate(run: Path, step: int, name: str = "", protocol: dict | None = None, **content) -> Path:
    """An evaluation in the form that `python -m evaluation` writes."""
    made = {"real": "shards", "n_real": 1000, "n_fake": 1000, "resolution": "16x16", "step": step, **(protocol or {})}
    path = run / "evaluations" / (name or f"step_{step:07d}.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"scores": {"fid_768": 30.0}, "protocol": made, "notes": []} | content))
    return path


def write(run: Path, **options) -> str:
    report.main(report.ReportOptions(run, **options))
    return (run / "report.html").read_text(encoding="utf-8")


def images(page: str) -> list[Image.Image]:
    """All that the page carries, decoded."""
    sources = [attrs["src"].partition(",")[2] for tag, attrs in Page(page).tags if tag == "img"]
    found = [Image.open(io.BytesIO(base64.b64decode(source))) for source in sources]
    return [image.convert("RGB") for image in found]


def cells(page: str) -> list[list[str]]:
    """The rows of all tables as text, but for their heads."""
    rows = [row for row in page.split("<tr>")[1:] if "</td>" in row]
    return [[Page(cell).shown.strip() for cell in row.split("</tr>")[0].split("</td>")[:-1]] for row in rows]


def pairs_image(path: Path, count: int) -> None:
    """As evaluation.scoring.pairs draws it: the sample a shade of grey, the training image magenta."""
    sides = [torch.full((3, 16, 16), 20 * row, dtype=torch.uint8) for row in range(count)]
    real = torch.tensor(MAGENTA, dtype=torch.uint8)[:, None, None].expand(3, 16, 16)
    draw_captioned_grid(torch.stack([one for side in sides for one in (side, real)]), ["a pair"] * count).save(path)


def colour(image: Image.Image) -> tuple[int, ...] | None:
    """Of a plain image, but for what JPEG changes; None of any other."""
    ends = image.getextrema()
    return None if any(high - low > 4 for low, high in ends) else tuple(low for low, _ in ends)


def is_magenta(image: Image.Image) -> bool:
    found = colour(image)
    return found is not None and max(abs(a - b) for a, b in zip(found, MAGENTA, strict=True)) <= 4


class TestTimeline:
    def test_images_are_those_of_the_grids(self, run):
        page = write(run)
        shown = images(page)
        for step in (2, 4):
            grid = Image.open(run / f"sample_{step:07d}.png").convert("RGB")
            for row in range(2):
                expected = grid.crop((2, 2 + 18 * row, 18, 18 + 18 * row))
                assert any(one.size == (16, 16) and one.tobytes() == expected.tobytes() for one in shown)
        real = Image.open(run / "reals.png").convert("RGB").crop((2, 2, 18, 18))
        assert any(one.tobytes() == real.tobytes() for one in shown)
        captions = (run / "sample_captions.txt").read_text().splitlines()
        assert len(captions) == 2 and all(caption in Page(page).shown for caption in captions)

    def test_at_most_eight_steps_with_the_first_and_the_last(self, unlogged):
        for step in range(5, 100):
            shutil.copy(unlogged / "sample_0000004.png", unlogged / f"sample_{step:07d}.png")
        shown = [attrs["alt"] for tag, attrs in Page(write(unlogged)).tags if tag == "img" and "step " in attrs["alt"]]
        steps = [alt for alt in shown if alt.startswith("step ")]
        assert len(steps) == 2 * 8 and steps[0] == "step 2" and steps[7] == "step 99"
        assert timeline.spread_to_the_end(3, 8) == [0, 1, 2] and timeline.spread_to_the_end(100, 4) == [0, 33, 66, 99]

    def test_grids_of_another_layout_are_shown_whole_and_damaged_ones_named(self, unlogged):
        Image.new("RGB", (75, 40), MAGENTA).save(unlogged / "sample_0000004.png")
        (unlogged / "sample_0000003.png").write_bytes(b"\x89PNG no more")
        page = write(unlogged)
        assert "sample_0000003.png cannot be shown" in Page(page).shown and "Whole grids" in Page(page).shown
        assert any(one.getpixel((30, 30))[1] < 20 and one.size == (75, 40) for one in images(page))


class TestScores:
    @pytest.fixture
    def run(self, unlogged: Path) -> Path:
        return unlogged

    def test_newest_best_interval_and_direction(self, run):
        for step, fid, recall in ((2, 20.0, 0.1), (3, 40.0, 0.3), (4, 30.0, 0.2)):
            scores = {"fid_768": fid, "recall_768": recall, "kid_768": 0.5, "kid_low_768": 0.4, "kid_high_768": 0.6,
                      "r_precision": 0.25, "r_precision_shuffled": 0.011, "joint_fd": None}  # fmt: skip
            evaluate(run, step, scores=scores, notes=["biased: N < 10,000"])
        evaluate(run, 1, scores={"fid_768": 1.0}, protocol={"n_fake": 10})
        page = write(run)
        rows = {row[0].split()[0]: row[1:] for row in cells(page) if row and "is better" in row[0]}
        assert rows["fid_768"] == ["30", "", "", "20 at step 2"]  # not the 1.0 of ten images
        assert rows["recall_768"] == ["0.2", "", "", "0.3 at step 3"]
        assert rows["kid_768"] == ["0.5", "95 %: 0.4 to 0.6", "", "this one"]
        assert rows["r_precision"][2] == "shuffled captions: 0.011" and rows["joint_fd"][0] == "–"
        assert "fid_768 ↓" in page.replace("</bdi></b>", "").replace("<b><bdi>", "") and "kid_low_768" not in rows
        shown = Page(page).shown
        assert "biased: N < 10,000" in shown and "1,000 real and 1,000 generated images" in shown
        assert "1 evaluation made in another way (n_fake 10 against 1000)" in shown

    def test_names(self):
        assert parse("clean_kid_low_768")[:] == ("clean_", "kid_low", "768")
        assert parse("fid_infinity")[:] == ("", "fid_infinity", "")
        assert in_order({"zebra", "clip_score", "kid_std", "fid_768", "fid", "vendi_real"}) == [
            "fid",
            "fid_768",
            "clip_score",
            "zebra",
        ]
        scores = {"kid_low_64": 1.0, "kid_high_64": 2.0, "fid_infinity_error": 0.5, "kid_std": 9.0}
        assert interval("kid_64", scores) == (1.0, 2.0) and interval("kid", scores) is None
        assert spread("fid_infinity", scores) == (0.5, "±") and spread("kid", scores) is None

    def test_every_score_of_the_engine_has_its_words(self):
        for name in (name for metric in METRICS.values() for name in metric.gives):
            for full in (name, f"clean_{name}_768", f"pytorch_{name}"):
                assert parse(full).stem == name
            assert parse(name).is_auxiliary or name in TITLES

    def test_which_way_is_better(self):
        lower = {name for name in TITLES if parse(name).lower_is_better}
        assert lower == {"fid", "fid_infinity", "kid", "clip_fd", "dinov2_fd", "median_rank", "text_median_rank",
                         "joint_fd"}  # fmt: skip

    def test_controls_are_those_of_the_same_layer(self, run):
        evaluate(run, 4, scores={"diversity_768": 0.5, "diversity_real_768": 0.75, "diversity_real": 9.0})
        assert [row for row in cells(write(run)) if "diversity_768" in row[0]][0][3] == "real images: 0.75"

    def test_the_step_is_found_wherever_it_is_told(self, run):
        evaluate(run, 4, "a.json")
        evaluate(run, 0, "b.json", protocol={"step": None, "checkpoint": "runs/ckpt_0000001/x/ckpt_0000006"})
        evaluate(run, 0, "step_0000007.json", protocol={"step": None})
        evaluate(run, 0, "c.json", protocol={"step": "9"})
        assert [one.step for one in read_evaluations(run)[0]] == [None, 4, 6, 7]

    def test_prompts_from_both_ends_and_the_least_diverse(self, run):
        rows = [{"caption": f"prompt {i:02d}", "count": 4, "clip_score": i, "diversity": 99 - i} for i in range(40)]
        random.Random(0).shuffle(rows)
        evaluate(run, 4, prompts=rows)
        tables = [row for row in cells(write(run)) if row and row[0].startswith("prompt ")]
        names = [int(row[0][7:]) for row in tables]
        assert names == [*range(39, 29, -1), *range(10), *range(39, 29, -1)]
        assert tables[0] == ["prompt 39", "39", "60", "4"]

    def test_by_rank_where_there_is_no_clip_score(self, run):
        evaluate(run, 4, prompts=[{"caption": f"prompt {i}", "count": 4, "rank": i} for i in (5, 1, 30)])
        assert [row[0] for row in cells(write(run)) if row and "prompt" in row[0]] == [
            "prompt 1",
            "prompt 5",
            "prompt 30",
        ]


class TestNeighbours:
    @pytest.fixture
    def run(self, unlogged: Path) -> Path:
        return unlogged

    def rows(self, count: int) -> list[dict]:
        captions = {"caption": "drawn", "training_caption": "learned"}
        return [{"sample": 7 + i, "training": 70 + i, "distance": i / 2} | captions for i in range(count)]

    @pytest.mark.parametrize("key", ["nearest_image", "nearest_picture"])  # the latter in reports of earlier versions
    def test_pairs_stand_beside_each_other(self, run, key):
        path = evaluate(run, 4, nearest=self.rows(4), **{key: "pairs.png"})
        pairs_image(path.with_name("pairs.png"), 3)
        page = write(run)
        shown = images(page)
        places = [i for i, one in enumerate(shown) if is_magenta(one)]
        assert [round(colour(shown[i - 1])[0] / 20) for i in places] == [0, 1, 2]
        said = Page(page).shown
        assert "Exact copies (distance 0): 1." in said and "distance 0.5" in said and "#7" in said and "#70" in said
        assert [row for row in cells(page) if row[-1].endswith("learned")] == [["1.5", "#10 drawn", "#73 learned"]]

    def test_an_image_laid_out_otherwise_is_shown_whole(self, run):
        path = evaluate(run, 4, nearest=self.rows(3), nearest_image="pairs.png")
        Image.new("RGB", (77, 99), MAGENTA).save(path.with_name("pairs.png"))
        page = write(run)
        assert [one.size for one in images(page) if is_magenta(one)] == [(77, 99)]
        assert "#72 learned" in Page(page).shown

    @pytest.mark.parametrize("name", ["../secret.png", "/secret.png", "link.png", "..", 7, None])
    def test_no_other_image_of_the_disk_is_shown(self, run, name):
        Image.new("RGB", (99, 77), MAGENTA).save(run / "secret.png")
        path = evaluate(run, 4, nearest=self.rows(3), nearest_image=name)
        path.with_name("link.png").symlink_to(run / "secret.png")
        page = write(run)
        assert "The images cannot be shown" in Page(page).shown and "learned" in page
        assert not any(map(is_magenta, images(page)))


def test_strings_are_text_and_nothing_else(run):
    long = HOSTILE + "x" * 10_000
    (run / "sample_captions.txt").write_text(f"{long}\n\u0007bell\n", encoding="utf-8")
    row = {"caption": long, "count": 3, "clip_score": 1.0}
    near = {"sample": 1, "caption": long, "training": 2, "training_caption": "שלום", "distance": 0.5}
    evaluate(run, 4, notes=[long], prompts=[row], nearest=[near], protocol={"real": long, "inception": {long: long}})
    with (run / "events.json").open("a") as file:
        file.write(json.dumps({"step": 3, "level": "warning", "name": "$\\frac$", "text": long}) + "\n")
    page = write(run)
    parsed = Page(page)
    assert not {tag for tag, _ in parsed.tags} & {"script", "a", "link", "iframe", "object", "embed", "form", "svg"}
    assert not any(name.startswith("on") or name == "href" for _, attrs in parsed.tags for name in attrs)
    assert all(attrs["src"].startswith("data:image/") for tag, attrs in parsed.tags if tag == "img")
    assert "alert('x')" in parsed.shown and "\ufffdbell" in parsed.shown and "שלום" in parsed.shown
    assert "x" * 3000 not in parsed.shown


def test_damaged_evaluations_are_named_and_skipped(run, capsys):
    evaluate(run, 4)
    texts = {"cut": '{"scores": {"fid', "list": "[]", "words": '{"scores": {"fid": "low"}}', "deep": "[" * 100_000,
             "odd": '{"scores": {"$x$": 1}}', "huge": '{"scores": {"fid": 1' + "0" * 400 + "}}", "bytes": "\udcff",
             "rows": '{"scores": {}, "prompts": [{}]}',
             "pair": '{"scores": {}, "nearest": [{"sample": 1}]}'}  # fmt: skip
    for name, text in texts.items():
        (run / "evaluations" / f"{name}.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    shown = Page(write(run)).shown
    assert all(f"evaluations/{name}.json: " in shown for name in texts) and "9 files" in shown
    assert "30" in [row[1] for row in cells((run / "report.html").read_text()) if row and "fid_768" in row[0]]
    assert capsys.readouterr().err.count("left out: ") == 9


def test_any_change_of_a_byte_gives_an_evaluation_or_its_name(run):
    row = {"caption": "a", "count": 1, "clip_score": 2.5, "rank": 1, "diversity": None}
    near = {"sample": 1, "caption": "a", "training": 2, "training_caption": "b", "distance": 0.5}
    path = evaluate(run, 4, prompts=[row], nearest=[near], nearest_image="p.png")
    whole, draws = path.read_bytes(), random.Random(0)
    outcomes = set()
    for _ in range(600):
        changed = bytearray(whole)
        changed[draws.randrange(len(changed))] = draws.choice(b'0"[]{},:nx\xff\x00')
        path.write_bytes(changed)
        found, damaged = read_evaluations(run)
        assert len(found) + len(damaged) == 1
        assert all(math.isfinite(value) for one in found for value in one.scores.values())
        outcomes.add(len(found))
    assert outcomes == {0, 1}


def test_what_is_missing_is_said(tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(UserError, match="bare is no run folder; .* holds config.yaml"):
        write(bare)
    with pytest.raises(UserError, match="nowhere does not exist"):
        write(tmp_path / "nowhere")
    (bare / "config.yaml").write_text(dump(ResolvedConfig(data="shards")))
    shown = Page(write(bare)).shown
    for sentence in ("No samples yet", "No evaluation yet", "--real shards", "Nothing has been logged yet",
                     "No evaluation holds scores by prompt", "the monitor has not said anything",
                     "none yet"):  # fmt: skip
        assert sentence in shown
    (bare / "config.yaml").write_text("resolution: many\n")
    shown = Page(write(bare)).shown
    assert "config.yaml: resolution" in shown and "config.yaml is missing or cannot be read" in shown


def test_damaged_logs_do_not_end_the_report(run):
    (run / "training_log.json").write_bytes(b"\xff\xfe" + (run / "training_log.json").read_bytes())
    (run / "best.json").write_text("{")
    (run / "events.json").write_text('{"step": 1, "level": [], "name": {}, "text": 7}\n{"step": true}\n')
    shown = Page(write(run)).shown
    assert "training_log.json: " in shown and "best.json: " in shown and "Nothing has been logged yet" in shown


def test_options_against_the_defaults_and_another_run(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.yaml").write_text(dump(ResolvedConfig(lr_g=5e-4, loss="relativistic")))
    rows = cells(write(run, against=other))
    assert ["loss", "hinge", "relativistic"] in rows and ["lr_g", "0.0003", "0.0005"] in rows
    assert ["lr_g", "0.0003", "0.00025"] in rows and not any(row[:1] == ["beta1"] for row in rows)
    with pytest.raises(UserError, match="config.yaml is missing"):
        write(run, against=tmp_path)


def test_time_and_rollbacks_by_closed_form(run):
    lines = [{"step": step, "images_seen": 8 * step, "images_per_second": 4.0, "loss_d": 1.0} for step in (1, 2, 3)]
    lines += [{**line, "attempt": 1, "images_per_second": 1.0} for line in lines[1:]]
    (run / "training_log.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    event = {"step": 3, "level": "action", "name": "rollback", "text": "back to ckpt_0000001", "time": "2026-01-01"}
    (run / "events.json").write_text(json.dumps(event) + "\n")
    record = read_run(run)
    assert record.seconds == pytest.approx(8 / 4 + 16 / 1)
    shown = Page(write(run)).shown
    assert "18 s" in shown and "1 rollback" in shown and "back to ckpt_0000001" in shown
    assert [duration(one) for one in (None, 59.6, 97, 7260, 200_000)] == [
        "not recorded",
        "1 min 0 s",
        "1 min 37 s",
        "2 h 1 min",
        "2 d 7 h",
    ]


def test_a_long_run_fits_on_a_page(run):
    draws = random.Random(0)
    lines = [{"step": i, "images_seen": 8 * i, "images_per_second": draws.uniform(90, 110)}
             | {name: draws.gauss(1, 0.3) for name in ("loss_d", "loss_g", "logit_real", "logit_fake", "r1")}
             for i in range(1, 40_001)]  # fmt: skip
    lines[30_013]["loss_d"] = 4.0
    (run / "training_log.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = curves.thinned(lines)
    assert len(few) <= 1.1 * curves.DRAWN_LINES and few[0] == lines[0] and few[-1] == lines[-1]
    assert lines[30_013] in few and [line["step"] for line in few] == sorted(line["step"] for line in few)
    assert len(write(run)) < 1_500_000
