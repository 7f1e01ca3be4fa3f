"""The page about a shard folder: hostile captions, alphabets, hashes against brute force, equal bytes."""

import json
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shards import create
from shards.near_duplicates import close_pairs, group, look_of
from shards.report import __main__ as report
from shards.report.markup import text
from shards.report.nearest_captions import nearest_pairs
from shards.report.sections import length_histogram, nearest_ratio, quantile
from shards.report.source_sizes import SourceSizes
from shards.report.words import BoundedCounter, words_of
from tests.conftest import SIZES
from toolkit.data.shard_format import Manifest
from toolkit.errors import UserError

HOSTILE = "<script>alert('x')</script><img src=\"http://x.example/y\" onerror=z> & \u202eevil"


class Page(HTMLParser):
    """Tags with attributes, and the text shown."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.shown = [], ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.shown += data


def write(folder: Path, **options) -> str:
    report.main(report.ReportOptions(folder, **options))
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def copy(shard_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shard_folder, tmp_path / "elsewhere"))


def test_captions_and_file_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    rows = [{"file": f"{i}.png", "caption": HOSTILE if i else "ćevapi"} for i in range(3)]
    for row in rows:
        Image.effect_noise((30, 20), 90).save(images / row["file"])
    rows.append({"file": "<script>9.png", "caption": "lost"})
    (images / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    create.main(create.CreateOptions(images, tmp_path / "out", 16, encoder="hashing"))
    page = Page(write(tmp_path / "out"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    sources = [attrs["src"] for tag, attrs in page.tags if tag == "img"]
    assert sources and all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not any("href" in attrs for _, attrs in page.tags)
    assert HOSTILE in page.shown and "<script>9.png" in page.shown and "missing file" in page.shown


def test_text_replaces_control_characters_and_isolates_direction() -> None:
    assert text("a\0b\ud800<\"'&") == "<bdi>a\ufffdb\ufffd&lt;&quot;&#x27;&amp;</bdi>"


def test_equal_shards_give_equal_pages_wherever_they_lie(shard_folder: Path, copy: Path, tmp_path: Path) -> None:
    report.main(report.ReportOptions(shard_folder, out=tmp_path / "page.html", show=5))
    one, other = (tmp_path / "page.html").read_text(), write(copy, show=5)
    assert one == other and str(tmp_path) not in one
    assert write(copy, show=5, seed=1) != one


def test_counts_on_the_page(copy: Path) -> None:
    shown = Page(write(copy, samples=10)).shown
    assert "Of these, 10 were read" in shown and "14 captions of 10 images; 4 have several, 2 at most" in shown
    shown = Page(write(copy)).shown
    assert "All samples were read" in shown and "30 captions of 24 images; 6 have several, 2 at most" in shown


def test_damaged_samples_and_reports_are_named(copy: Path) -> None:
    row = np.load(copy / "index.npy")[13]
    tar = copy / f"shard-{row[0]:05d}.tar"
    data = bytearray(tar.read_bytes())
    data[row[1] : row[1] + row[2]] = bytes(int(row[2]))
    tar.write_bytes(data)
    shown = Page(write(copy)).shown
    assert "1 damaged samples cannot be read" in shown and "sample 13:" in shown
    (copy / "report.json").unlink()
    assert "Not recorded" in Page(write(copy)).shown
    (copy / "report.json").write_text("[]")
    with pytest.raises(UserError, match=r"report.json is damaged .*build the shards again"):
        write(copy)


def test_sizes_are_those_of_the_sources(shard_folder: Path) -> None:
    sizes = SourceSizes(shard_folder, Manifest.load(shard_folder))
    assert [sizes.of(i) for i in range(24)] == [SIZES[i % len(SIZES)] for i in range(24)]
    assert [nearest_ratio(*size) for size in ((4000, 3000), (9, 16), (100, 101), (1, 50))] == [
        "4:3",
        "9:16",
        "1:1",
        "1:3",
    ]


def test_words_of_any_script() -> None:
    assert words_of("The Ćevapčići, s lukom i ŠLJIVOM đ 12") == ["ćevapčići", "lukom", "šljivom"]
    assert words_of("Ћевапи са луком") == ["ћевапи", "луком"]
    assert words_of("c\u030cevap, crème-brûlée l’oignon") == ["čevap", "crème-brûlée", "l’oignon"]
    assert words_of("हिन्दी 寿司 饭") == ["हिन्दी", "寿司", "饭"]


def test_counter_is_bounded_and_keeps_the_frequent() -> None:
    counter = BoundedCounter(limit=10)
    for i in range(1000):
        counter.add("often")
        counter.add(f"once {i}")
    assert counter.forgot and counter.top(1) == [("often", 1000)] and len(counter.top(99)) <= 10


def test_histogram_holds_every_caption() -> None:
    lengths = Counter({5: 50, 6: 40, 40: 9, 5000: 1})
    shown = Page(length_histogram(lengths)).shown
    assert (quantile(lengths, 0.5), quantile(lengths, 0.99)) == (5, 40)
    # 36 usual lengths over 11 bars are 4 a bar: 5 and 6, then 40 in 37-40, then the rest
    assert shown.startswith("590") and "379" in shown and "41+1" in shown


class TestNearDuplicates:
    @pytest.mark.parametrize("bits", [0, 3, 6])
    def test_bands_find_what_brute_force_finds(self, bits: int) -> None:
        draws = np.random.default_rng(bits)
        hashes = draws.integers(0, 2**64, 60, dtype=np.uint64).repeat(5)
        for _ in range(6):
            flipped = np.uint64(1) << draws.integers(0, 64, 300, dtype=np.uint64)
            hashes ^= np.where(draws.random(300) < 0.3, flipped, np.uint64(0))
        expected = [
            [i, j]
            for i in range(300)
            for j in range(i + 1, 300)
            if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= bits
        ]
        pairs, complete = close_pairs(hashes, bits)
        assert complete and pairs.tolist() == expected and len(expected) > 5

    def test_full_buckets_are_cut_and_said_to_be(self) -> None:
        pairs, complete = close_pairs(np.zeros(100, dtype=np.uint64), 0, window=3)
        assert not complete and len(pairs) == 99 + 98 + 97

    def test_no_chains(self) -> None:
        looks = np.array([[0b0, 0], [0b11, 0], [0b1111, 0], [0b0, 0], [0b0, 0xFF0000], [0b110011, 0]], dtype=np.uint64)
        assert group(looks, 2).members == [[0, 1, 3]]

    def test_hash_survives_scale_and_jpeg_but_not_another_image(self, tmp_path: Path) -> None:
        small = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3), dtype=np.uint8)
        one, other = (Image.fromarray(part).resize((128, 128), Image.Resampling.BICUBIC) for part in small)
        one.resize((90, 90)).save(tmp_path / "a.jpg", quality=60)
        changed = look_of(Image.open(tmp_path / "a.jpg").convert("RGB"))
        assert (look_of(one).hash ^ changed.hash).bit_count() <= 4
        assert (look_of(one).hash ^ look_of(other).hash).bit_count() > 15
        assert look_of(Image.new("RGB", (9, 9), "#102030")) == (1 << 63, 0x102030)


def test_nearest_captions_against_known_angles() -> None:
    angles = torch.tensor([0.0, 1.0, 1.1, 3.0, 2.8])
    pairs = nearest_pairs(torch.stack([angles.cos(), angles.sin()], dim=1), 3)
    assert [(pair.first, pair.second) for pair in pairs] == [(1, 2), (3, 4), (0, 1)]
    assert [pair.cosine for pair in pairs] == pytest.approx([np.cos(0.1), np.cos(0.2), np.cos(1.0)], abs=1e-4)


def test_real_photos(real_data: Path, tmp_path: Path) -> None:
    source = real_data / "data" / "based-cooking"
    create.main(create.CreateOptions(source, tmp_path / "out", 32, encoder="hashing", limit=20))
    shown = Page(write(tmp_path / "out")).shown
    assert "All samples were read" in shown and "älplermagronen (Alpine macaroni)" in shown


def test_a_folder_with_its_page_may_be_replaced(caption_folder, tmp_path):
    out = tmp_path / "built"
    for overwrite in (False, True):
        create.main(create.CreateOptions(caption_folder, out, 16, encoder="hashing", overwrite=overwrite))
        assert not (out / "report.html").exists()
        report.main(report.ReportOptions(out))
        assert (out / "report.html").stat().st_size > 1000
