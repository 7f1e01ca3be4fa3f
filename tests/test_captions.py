"""Which captions a folder holds, and that everything left out is named with file, line and reason."""

import csv
import json
import os
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from shards.caption_folder.collection import clean_caption
from shards.caption_folder.samples import CaptionRules, find_captions, find_samples
from shards.problems import Problem, first_few, summary
from toolkit.errors import UserError

RULES = CaptionRules()


def images(folder: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9 + i, 8), (30 * i, 99, 99)).save(folder / name)
    return folder


def write(path: Path, content: str | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def jsonl(folder: Path, *rows: dict | str, name: str = "captions.jsonl") -> None:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    write(folder / name, "\n".join(lines) + "\n")


def found(folder: Path, rules: CaptionRules = RULES) -> tuple[dict[str, tuple[str, ...]], list[Problem]]:
    samples, problems = find_samples(folder, rules)
    assert [sample.key for sample in samples] == sorted(sample.key for sample in samples)
    assert all((folder / sample.image).is_file() for sample in samples)
    return {sample.key: sample.captions for sample in samples}, problems


class TestCleanCaption:
    @pytest.mark.parametrize(
        "text, expected",
        [
            ("a dish", "a dish"),
            ("\ufeff a\t dish\r\n", "a dish"),
            ("a\u00a0dish\u2028here\x0b", "a dish here"),
            ("ćevapčići, š ć ž", "ćevapčići, š ć ž"),
            ("борщ со сметаной", "борщ со сметаной"),
            ("👩‍🍳 cooks 🍲", "👩‍🍳 cooks 🍲"),
            (unicodedata.normalize("NFD", "žito"), "žito"),
            ("x" * 10_000, "x" * 10_000),
        ],
    )
    def test_kept(self, text: str, expected: str) -> None:
        assert clean_caption(text) == expected
        assert clean_caption(expected) == expected

    @pytest.mark.parametrize(
        "text, reason",
        [
            ("", "empty caption"),
            (" \t\u3000\n", "empty caption"),
            ("\ufeff", "empty caption"),
            (None, "empty caption"),
            ("a\0b", "control character: U\\+0000"),
            ("a\x1b[31m", "control character: U\\+001B"),
            ("x" * 10_001, "caption too long: 10,001 characters"),
            ("\ud83d", "not UTF-8"),
            (b"\xe9".decode("utf-8", "surrogateescape"), "not UTF-8: 0xE9"),
            (7, "caption is no text: found int"),
        ],
    )
    def test_refused(self, text: object, reason: str) -> None:
        with pytest.raises(UserError, match=f"^{reason}"):
            clean_caption(text)


class TestTextFiles:
    def test_beside_images(self, caption_folder: Path) -> None:
        captions, problems = found(caption_folder)
        assert len(captions) == 12 and problems == []
        assert captions["more/disc00"] == ("a red disc", "a drawing")
        assert captions["disc05"] == ("a teal disc",)

    def test_parallel_trees_share_keys(self, tmp_path: Path) -> None:
        images(tmp_path, "images/a/1.png", "images/2.jpg")
        write(tmp_path / "captions/a/1.txt", "one\r\n\r\nuno\n")
        write(tmp_path / "captions/2.txt", "two")
        assert found(tmp_path) == ({"2": ("two",), "a/1": ("one", "uno")}, [])
        assert find_captions(tmp_path, RULES)[0] == found(tmp_path)[0]
        assert find_captions(tmp_path / "captions", RULES)[0] == found(tmp_path)[0]

    def test_each_fault_is_named_with_its_line(self, tmp_path: Path) -> None:
        images(
            tmp_path, "good.png", "bare.png", "blank.png", "latin.png", "nul.png", "same.jpg", "same.png", "huge.png"
        )
        write(tmp_path / "good.txt", "good\ngood\n  good \nbetter")
        write(tmp_path / "blank.txt", " \n\n")
        write(tmp_path / "latin.txt", "crème brûlée\n".encode() + "crème".encode("latin-1"))
        write(tmp_path / "nul.txt", "fine\nbro\0ken")
        write(tmp_path / "same.txt", "same")
        write(tmp_path / "orphan.txt", "no image")
        write(tmp_path / "huge.txt", "x" * 1_000_001)
        captions, problems = found(tmp_path)
        assert captions == {
            "good": ("good", "better"),
            "latin": ("crème brûlée",),
            "nul": ("fine",),
            "same": ("same",),
        }
        assert dict(problems) == {
            "bare.png": "image without caption",
            "blank.txt": "empty caption",
            "latin.txt:2": "not UTF-8: 0xE8 in the caption",
            "nul.txt:2": "control character: U+0000 in the caption",
            "same.png": "same name: same.png and same.jpg differ only in the suffix",
            "orphan.txt": "caption without image: no orphan with .jpg, .jpeg, .png, .webp, .gif, .bmp",
            "huge.txt": "caption too long: over 1,000,000 bytes",
        }

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_text_survives(self, tmp_path: Path, encoding: str) -> None:
        images(tmp_path, "пицца.png")
        write(tmp_path / "пицца.txt", unicodedata.normalize("NFD", "Пицца с ćevapima, š ć ž 🍕").encode(encoding))
        assert found(tmp_path)[0] == {"пицца": ("Пицца с ćevapima, š ć ž 🍕",)}

    def test_utf16_is_refused(self, tmp_path: Path) -> None:
        images(tmp_path, "a.png")
        write(tmp_path / "a.txt", "a dish".encode("utf-16"))
        captions, problems = found(tmp_path)
        assert captions == {} and problems == [("a.txt:1", "not UTF-8: 0xFF in the caption")]

    def test_dots_in_names(self, tmp_path: Path) -> None:
        images(tmp_path, "dish.v1.png", "dish.v2.png", "UPPER.JPG")
        for name in ("dish.v1", "dish.v2", "UPPER"):
            write(tmp_path / f"{name}.txt", name)
        assert found(tmp_path)[0] == {name: (name,) for name in ("UPPER", "dish.v1", "dish.v2")}


class TestTables:
    ROWS = ({"file": "a.png", "caption": "one"}, {"file": "b/c.png", "captions": ["two", "zwei"], "split": "test"})

    def test_jsonl(self, tmp_path: Path) -> None:
        jsonl(images(tmp_path, "a.png", "b/c.png"), *self.ROWS, {"file_name": "./a.png", "text": "uno"})
        write(tmp_path / "SOURCE.txt", "no caption")
        assert found(tmp_path) == ({"a": ("one", "uno"), "b/c": ("two", "zwei")}, [])

    @pytest.mark.parametrize("name", ["captions.csv", "metadata.csv"])
    def test_csv_with_quotes_and_line_breaks(self, tmp_path: Path, name: str) -> None:
        images(tmp_path, "a.png")
        with (tmp_path / name).open("w", newline="", encoding="utf-8-sig") as file:
            rows = csv.writer(file)
            rows.writerows([["filename", "text"], ["a.png", 'a "big", dish'], ["a.png", "two\nlines"]])
        assert found(tmp_path) == ({"a": ('a "big", dish', "two lines")}, [])

    def test_csv_faults(self, tmp_path: Path) -> None:
        images(tmp_path, "a.png", "b.png")
        write(tmp_path / "captions.csv", b'file,caption\na.png,one\na.png,one,more\nb.png,caf\xe9\nb.png,"open')
        captions, problems = found(tmp_path)
        assert captions == {"a": ("one",)}
        assert problems == [
            ("captions.csv:3", "malformed CSV: 3 columns, the header has 2"),
            ("captions.csv:4", "not UTF-8: 0xE9 in the caption"),
            ("captions.csv:5", "malformed CSV: unexpected end of data"),
        ]

    def test_jsonl_faults(self, tmp_path: Path) -> None:
        images(tmp_path, "a.png", "bare.png")
        jsonl(
            tmp_path,
            {"file": "a.png", "caption": "one"},
            '{"file": "a.png", "caption": ',
            "[1, 2]",
            {"file": "gone.png", "caption": "two"},
            {"file": "/etc/passwd", "caption": "three"},
            {"file": "b/../../a.png", "caption": "four"},
            {"caption": "five"},
            {"file": "a.png", "captions": []},
            {"file": "a.png", "caption": 6},
            {"file": "a.png", "label": "seven"},
            {"file": "", "caption": "eight"},
            '{"file": "a.png", "caption": "\\ud800"}',
            "[" * 100_000,
        )
        captions, problems = found(tmp_path)
        assert captions == {"a": ("one",)}
        reasons = [
            "malformed JSON: Expecting value",
            "malformed JSON: list",
            "missing file: gone.png",
            "path leaves the folder: /etc/passwd",
            "path leaves the folder: b/../../a.png",
            "no such column: file or file_name",
            "caption is no text: found list",
            "caption is no text: found int",
            "no such column: caption or captions or text or title; the row has file, label",
            "no file name: found ''",
            "not UTF-8",
            "malformed JSON",
        ]
        assert [path for path, _ in problems] == [f"captions.jsonl:{i}" for i in range(2, 14)] + ["bare.png"]
        for (path, reason), expected in zip(problems, [*reasons, "image without caption"], strict=True):
            assert reason.startswith(expected), path

    def test_where(self, tmp_path: Path) -> None:
        jsonl(images(tmp_path, "a.png", "b/c.png"), *self.ROWS)
        assert found(tmp_path, CaptionRules(where="split=test")) == ({"b/c": ("two", "zwei")}, [])
        with pytest.raises(UserError, match=r"--where split=tset.*one of: null, test"):
            found(tmp_path, CaptionRules(where="split=tset"))
        with pytest.raises(UserError, match="FIELD=VALUE"):
            CaptionRules(where="test")

    def test_columns_by_name(self, tmp_path: Path) -> None:
        jsonl(images(tmp_path, "a.png"), {"file": "x", "caption": "no", "photo": "a.png", "alt": "yes"})
        assert found(tmp_path, CaptionRules(file_column="photo", caption_column="alt"))[0] == {"a": ("yes",)}

    def test_captions_without_images(self, tmp_path: Path) -> None:
        jsonl(tmp_path, *self.ROWS)
        assert find_captions(tmp_path, RULES) == ({"a": ("one",), "b/c": ("two", "zwei")}, [])

    def test_order_of_forms(self, tmp_path: Path) -> None:
        images(tmp_path, "a.png")
        write(tmp_path / "a.txt", "from text")
        assert found(tmp_path)[0] == {"a": ("from text",)}
        write(tmp_path / "metadata.csv", "file,caption\na.png,from csv\n")
        assert found(tmp_path)[0] == {"a": ("from csv",)}
        jsonl(tmp_path, {"file": "a.png", "caption": "from jsonl"})
        assert found(tmp_path)[0] == {"a": ("from jsonl",)}


class TestClassFolders:
    def test_template(self, tmp_path: Path) -> None:
        images(tmp_path, "train/apple_pie/1.png", "train/miso-soup/1.png", "loose.png")
        with pytest.raises(UserError, match="3 images but no captions.*--class_template"):
            found(tmp_path)
        captions, problems = found(tmp_path, CaptionRules(class_template="a photo of {}"))
        assert captions == {
            "train/apple_pie/1": ("a photo of apple pie",),
            "train/miso-soup/1": ("a photo of miso soup",),
        }
        assert problems == [("loose.png", "image without caption: it lies in no class folder")]

    def test_template_needs_its_place_and_no_table(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="--class_template is 'a photo'"):
            CaptionRules(class_template="a photo")
        jsonl(images(tmp_path, "a.png"), {"file": "a.png", "caption": "one"})
        with pytest.raises(UserError, match="captions.jsonl; drop one"):
            found(tmp_path, CaptionRules(class_template="a {}"))


class TestFolder:
    @pytest.mark.parametrize("make", [False, True])
    def test_missing_or_empty(self, tmp_path: Path, make: bool) -> None:
        folder = tmp_path / "x"
        if make:
            folder.mkdir()
        for find in (find_samples, find_captions):
            with pytest.raises(UserError, match="holds no files" if make else "no folder at"):
                find(folder, RULES)

    def test_without_images(self, tmp_path: Path) -> None:
        write(tmp_path / "a.txt", "a")
        write(tmp_path / "a.svg", "<svg/>")
        with pytest.raises(UserError, match="2 files but no image"):
            found(tmp_path)
        assert find_captions(tmp_path, RULES)[0] == {"a": ("a",)}

    def test_where_needs_a_table(self, caption_folder: Path) -> None:
        with pytest.raises(UserError, match="--where needs a table"):
            found(caption_folder, CaptionRules(where="split=train"))

    def test_hidden_files_links_and_loops(self, caption_folder: Path) -> None:
        expected, _ = found(caption_folder)
        write(caption_folder / ".hidden" / "a.txt", "hidden")
        write(caption_folder / "._disc01.jpg", "mac")
        (caption_folder / "more" / "loop").symlink_to(caption_folder)
        (caption_folder / "self").symlink_to(caption_folder / "self")
        (caption_folder / "gone.png").symlink_to("nowhere.png")
        os.mkfifo(caption_folder / "pipe.png")
        assert found(caption_folder) == (expected, [])

    def test_linked_folder_is_followed(self, caption_folder: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "link").symlink_to(caption_folder)
        assert len(found(tmp_path / "elsewhere")[0]) == 12

    def test_name_that_is_no_text(self, tmp_path: Path) -> None:
        images(tmp_path, "a.png", "line\nbreak.png")
        os.rename(tmp_path / "a.png", os.fsencode(tmp_path) + b"/caf\xe9.png")
        write(tmp_path / "line\nbreak.txt", "x")
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("x")
        captions, problems = found(tmp_path)
        assert captions == {} and len(problems) == 2
        assert all(reason.startswith("bad file name") and path.isprintable() for path, reason in problems)


def test_summary_counts_kinds() -> None:
    problems = [Problem("a", "bad image: x"), Problem("b", "bad image: y"), Problem("c", "empty caption")]
    assert summary(problems) == "skipped 3 (2 bad image, 1 empty caption)"
    assert summary([]) == "skipped 0"
    assert first_few(problems, 2) == ": a: bad image: x; b: bad image: y ..."
    assert first_few([]) == ""
