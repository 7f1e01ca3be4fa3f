"""What may be wrong with a caption, in every form it may come in: kept the same, or named with file and line."""

import json
import tracemalloc
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from shards.caption_folder.samples import CaptionRules, find_captions, find_samples
from shards.problems import Problem
from toolkit.errors import UserError

RULES = CaptionRules()


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def found(folder: Path, rules: CaptionRules = RULES) -> tuple[dict[str, tuple[str, ...]], list[Problem]]:
    samples, problems = find_samples(folder, rules)
    assert all((folder / sample.image).is_file() for sample in samples)
    return {sample.key: sample.captions for sample in samples}, problems


def quoted(caption: bytes) -> bytes:
    """As JSON, bytes that are no UTF-8 kept."""
    text = json.dumps(caption.decode("utf-8", "surrogateescape"), ensure_ascii=False)
    return text.encode("utf-8", "surrogateescape")


def places(name: str, captions: list[bytes]) -> list[str]:
    """Where text files have the captions: in their lines, but nowhere if they are blank."""
    blank = not b"".join(captions).decode("utf-8", "replace").strip()
    return [name] if blank else [f"{name}:{i + 1}" for i in range(len(captions))]


def write_txt(folder: Path, captions: list[bytes]) -> list[str]:
    (folder / "a.txt").write_bytes(b"\n".join(captions))
    return places("a.txt", captions)


def write_two_trees(folder: Path, captions: list[bytes]) -> list[str]:
    (folder / "images").mkdir(exist_ok=True)
    (folder / "a.png").rename(folder / "images" / "a.png")
    (folder / "captions").mkdir()
    (folder / "captions" / "a.txt").write_bytes(b"\r\n".join(captions))
    return places("captions/a.txt", captions)


def write_json(folder: Path, captions: list[bytes]) -> list[str]:
    (folder / "a.json").write_bytes(b'{"caption": [' + b", ".join(map(quoted, captions)) + b"]}")
    return ["a.json"] * len(captions)


def write_jsonl(folder: Path, captions: list[bytes]) -> list[str]:
    rows = [b'{"file": "a.png", "caption": ' + quoted(caption) + b"}" for caption in captions]
    (folder / "captions.jsonl").write_bytes(b"\r\n".join(rows))
    return [f"captions.jsonl:{i + 1}" for i in range(len(captions))]


def write_csv(folder: Path, captions: list[bytes]) -> list[str]:
    (folder / "captions.csv").write_bytes(b'file,caption\na.png,"' + b'"\na.png,"'.join(captions) + b'"\n')
    return [f"captions.csv:{i + 2}" for i in range(len(captions))]


def write_parquet(folder: Path, captions: list[bytes]) -> list[str]:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = pyarrow.array(captions, pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(
        pyarrow.table({"file": ["a.png"] * len(captions), "caption": texts}), folder / "captions.parquet"
    )
    return [f"captions.parquet:{i + 1}" for i in range(len(captions))]


def write_json_rows(folder: Path, captions: list[bytes]) -> list[str]:
    rows = [b'{"file": "a.png", "caption": ' + quoted(caption) + b"}" for caption in captions]
    (folder / "metadata.json").write_bytes(b"[" + b",\n".join(rows) + b"]")
    return [f"metadata.json:{i + 1}" for i in range(len(captions))]


def write_coco(folder: Path, captions: list[bytes]) -> list[str]:
    rows = [b'{"id": %d, "image_id": 7, "caption": ' % i + quoted(text) + b"}" for i, text in enumerate(captions)]
    images = b'{"images": [{"id": 7, "file_name": "a.png"}], "annotations": ['
    (folder / "captions.json").write_bytes(images + b", ".join(rows) + b"]}")
    return [f"captions.json:{i + 1}" for i in range(len(captions))]


FORMS = {
    "txt": write_txt,
    "two trees": write_two_trees,
    "json": write_json,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "json rows": write_json_rows,
    "coco": write_coco,
}

KEPT = {
    "plain": "a dish",
    "Latin": "ćevapčići, š ć ž, brûlée",
    "Cyrillic": "борщ со сметаной, ћевапи",
    "emoji": "👩‍🍳 cooks 🍲",
    "decomposed": unicodedata.normalize("NFD", "žito sa šlagom"),
    "right to left": "حساء العدس",
    "spaces": "  a \u00a0 dish\u3000 ",
    "10,000 characters": "č" * 10_000,
}

REFUSED = {
    "nothing": (b"", "empty caption"),
    "spaces": (b" \t ", "empty caption"),
    "wide spaces": ("\u3000\u00a0".encode(), "empty caption"),
    "Latin-1": (b"caf\xe9 au lait", "not UTF-8: 0xE9 in "),
    "half a character": ("ž".encode()[:1], "not UTF-8: 0xC5 in "),
    "nul": (b"bro\0ken", "control character: U+0000 in the caption"),
    "terminal": (b"\x1b[31mred", "control character: U+001B in the caption"),
    "100 kB": (b"x" * 100_000, "caption too long: 100,000 characters, at most 10,000"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One image, a.png."""
    image(tmp_path / "a.png")
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
class TestEveryForm:
    @pytest.mark.parametrize("what", KEPT)
    def test_kept(self, folder: Path, form: str, what: str) -> None:
        FORMS[form](folder, [KEPT[what].encode()])
        captions = " ".join(unicodedata.normalize("NFC", KEPT[what]).split())
        assert found(folder) == ({"a": (captions,)}, [])
        assert find_captions(folder, RULES) == ({"a": (captions,)}, [])

    @pytest.mark.parametrize("what", REFUSED)
    def test_refused_alone(self, folder: Path, form: str, what: str) -> None:
        caption, reason = REFUSED[what]
        places = FORMS[form](folder, [caption])
        captions, problems = found(folder)
        assert captions == {} and [problem.path for problem in problems] == places
        assert problems[0].reason.startswith(reason)

    @pytest.mark.parametrize("what", [what for what in REFUSED if REFUSED[what][1] != "empty caption"])
    def test_a_bad_caption_costs_itself_alone(self, folder: Path, form: str, what: str) -> None:
        caption, reason = REFUSED[what]
        places = FORMS[form](folder, [b"first", caption, "čorba".encode()])
        captions, problems = found(folder)
        assert captions == {"a": ("first", "čorba")} and len(problems) == 1
        assert problems[0].path == places[1] and problems[0].reason.startswith(reason)

    def test_equal_captions_count_once(self, folder: Path, form: str) -> None:
        decomposed = unicodedata.normalize("NFD", "žito")
        FORMS[form](folder, [text.encode() for text in ("b", "žito", "b ", "a", decomposed, "b")])
        assert found(folder) == ({"a": ("b", "žito", "a")}, [])

    def test_a_byte_order_mark_is_no_text(self, folder: Path, form: str) -> None:
        FORMS[form](folder, [b"a dish"])
        for path in folder.rglob("*"):
            if path.suffix in (".txt", ".json", ".jsonl", ".csv"):
                path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        assert found(folder) == ({"a": ("a dish",)}, [])

    def test_many_captions_take_time_in_proportion(self, folder: Path, form: str) -> None:
        """50,000 different ones of an image: compared with each other one by one they would take minutes.

        A thousand are kept, for the vectors of more would outgrow what a shard may hold of a sample.
        """
        texts = [f"dish {i}" for i in range(50_000)]
        FORMS[form](folder, [text.encode() for text in texts])
        problem = Problem("a", "too many captions: 50,000, the first 1,000 are kept")
        assert found(folder) == ({"a": tuple(texts[:1000])}, [problem])

    def test_without_any_caption(self, folder: Path, form: str) -> None:
        image(folder / ("images/b.png" if form == "two trees" else "b.png"))
        FORMS[form](folder, [b"a dish"])
        captions, problems = found(folder)
        assert captions == {"a": ("a dish",)} and len(problems) == 1
        assert problems[0].path.endswith("b.png") and problems[0].reason.startswith("image without caption")

    def test_an_unreadable_file_is_named(self, folder: Path, form: str, monkeypatch) -> None:
        def refuse(path, *how, **more):
            raise PermissionError(13, "Permission denied", str(path))

        FORMS[form](folder, [b"a dish"])
        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr(Path, "open", refuse)
        try:
            captions, problems = find_samples(folder, RULES)
        except UserError as error:  # a table, without which there is nothing to go on with
            assert form not in ("txt", "two trees", "json")
            assert "cannot be read" in str(error) and "Permission denied" in str(error)
        else:
            assert form in ("txt", "two trees", "json") and captions == []
            assert problems[0].reason == "cannot be read: Permission denied"


class TestJsonBesideImages:
    def write(self, path: Path, content: str | bytes) -> None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def test_columns_and_lists(self, folder: Path) -> None:
        contents = {"a": {"text": "one", "id": 3}, "b": {"captions": ["two", "zwei"]}, "c.v1": {"title": "three"}}
        for key, content in contents.items():
            image(folder / f"{key}.png")
            self.write(folder / f"{key}.json", json.dumps(content))
        assert found(folder) == ({"a": ("one",), "b": ("two", "zwei"), "c.v1": ("three",)}, [])
        for key in contents:
            self.write(folder / f"{key}.json", json.dumps({"caption": "x", "alt": key}))
        assert found(folder, CaptionRules(caption_column="alt"))[0] == {key: (key,) for key in contents}

    @pytest.mark.parametrize(
        "content, reason",
        [
            ("", "malformed JSON: Expecting value"),
            ('{"caption": "a", ', "malformed JSON: Expecting property name"),
            ('["one"]', "malformed JSON: list, expected {...}"),
            ("null", "malformed JSON: NoneType, expected {...}"),
            ("[" * 100_000, "malformed JSON: "),
            ('{"n": ' + "9" * 10_000 + "}", "malformed JSON: Exceeds the limit"),
            ('{"label": "a"}', "no such column: caption or captions or text or title; the row has label"),
            ('{"caption": {"en": "a"}}', "caption is no text: found dict"),
            ('{"caption": [["a"]]}', "caption is no text: found list"),
            ('{"caption": []}', "caption is no text: found list"),
            ('{"caption": null}', "empty caption"),
            ('{"caption": "\\ud800"}', "not UTF-8"),
            ("a".encode("utf-16"), "malformed JSON: "),
            ('{"caption": "a"}' + " " * 10**6, "caption too long: over 1,000,000 bytes"),
        ],
    )
    def test_faults(self, folder: Path, content: str | bytes, reason: str) -> None:
        image(folder / "b.png")
        self.write(folder / "b.json", '{"caption": "fine"}')
        self.write(folder / "a.json", content)
        captions, problems = found(folder)
        assert captions == {"b": ("fine",)} and len(problems) == 1
        assert problems[0].path == "a.json" and problems[0].reason.startswith(reason)

    def test_text_before_json(self, folder: Path) -> None:
        image(folder / "b.png")
        self.write(folder / "a.json", '{"caption": "from json"}')
        self.write(folder / "b.json", '{"caption": "from json"}')
        self.write(folder / "a.txt", "from text")
        assert found(folder) == ({"a": ("from text",), "b": ("from json",)}, [])
        assert find_captions(folder, RULES)[0] == found(folder)[0]

    def test_two_trees(self, tmp_path: Path) -> None:
        image(tmp_path / "images/x/a.png")
        (tmp_path / "captions/x").mkdir(parents=True)
        self.write(tmp_path / "captions/x/a.json", '{"caption": "one"}')
        assert found(tmp_path) == ({"x/a": ("one",)}, [])
        assert find_captions(tmp_path / "captions", RULES) == ({"x/a": ("one",)}, [])

    def test_a_lost_image_is_noticed_but_other_json_is_not_taken_for_captions(self, folder: Path) -> None:
        self.write(folder / "a.txt", "one")
        self.write(folder / "stats.json", '{"count": 1}')
        assert found(folder) == ({"a": ("one",)}, [])
        assert find_captions(folder, RULES) == ({"a": ("one",)}, [])
        self.write(folder / "lost.txt", "two")
        image(folder / "b.png")
        self.write(folder / "b.json", '{"caption": "three"}')
        captions, problems = found(folder)
        assert captions == {"a": ("one",), "b": ("three",)}
        assert sorted(problem.path for problem in problems) == ["lost.txt", "stats.json"]
        assert all(problem.reason.startswith("caption without image") for problem in problems)


class TestJsonTables:
    def write(self, folder: Path, content: object, name: str = "captions.json") -> Path:
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    def test_rows(self, folder: Path) -> None:
        rows = [{"file": "./a.png", "captions": ["one", "uno"]}, {"file": "a.png", "caption": "two"}, 3, {"file": "a"}]
        captions, problems = found(self.write(folder, rows))
        assert captions == {"a": ("one", "uno", "two")}
        assert [problem.path for problem in problems] == ["captions.json:3", "captions.json:4"]
        assert problems[0].reason == "malformed JSON: int, expected {...}"
        assert problems[1].reason.startswith("no such column: caption")

    def test_coco(self, folder: Path) -> None:
        image(folder / "b.png")
        image(folder / "bare.png")
        images = [
            {"id": 1, "file_name": "a.png", "split": "train"},
            {"id": "two", "file_name": "b.png", "split": "test"},
            {"id": 1, "file_name": "b.png"},
            {"id": 4},
            {"id": [5], "file_name": "a.png"},
            "a.png",
        ]
        annotations = [
            {"id": 7, "image_id": 1, "caption": "one"},
            {"id": 8, "image_id": "two", "caption": "two"},
            {"id": 9, "image_id": 1, "caption": "uno", "file_name": "other.png"},
            {"id": 10, "image_id": 99, "caption": "lost"},
            {"id": 11, "image_id": [1], "caption": "lost"},
            {"id": 12, "image_id": 1},
            "one",
            {"id": 13, "caption": "lost"},
        ]
        self.write(folder, {"info": {}, "images": images, "annotations": annotations})
        captions, problems = found(folder)
        assert captions == {"a": ("one", "uno"), "b": ("two",)}
        starts = [
            ("captions.json:image 3", "same id: 1 is the id of an earlier image"),
            ("captions.json:image 4", "malformed JSON: an image needs an id"),
            ("captions.json:image 5", "malformed JSON: an image needs an id"),
            ("captions.json:image 6", "malformed JSON: an image needs an id"),
            ("captions.json:4", "caption without image: no image has the id 99"),
            ("captions.json:5", "caption without image: no image has the id [1]"),
            ("captions.json:6", "no such column: caption"),
            ("captions.json:7", "malformed JSON: str"),
            ("captions.json:8", "caption without image: no image has the id None"),
            ("bare.png", "image without caption: not in captions.json"),
        ]
        assert [problem.path for problem in problems] == [place for place, _ in starts]
        assert all(problem.reason.startswith(start) for problem, (_, start) in zip(problems, starts, strict=True))
        assert found(folder, CaptionRules(where="split=test"))[0] == {"b": ("two",)}

    @pytest.mark.parametrize(
        "content, reason",
        [
            ("", "is malformed JSON: Expecting value"),
            ('[{"file": "a.png", "caption": "one"},', "is malformed JSON: "),
            ("[" * 100_000, "is malformed JSON: "),
            ("5", "is no table of captions: "),
            ({"a.png": "one"}, "is no table of captions: "),
            ({"images": [], "annotations": {}}, "is no table of captions: "),
            ({"images": [], "categories": []}, "is no table of captions: "),
        ],
    )
    def test_other_documents(self, folder: Path, content: object, reason: str) -> None:
        with pytest.raises(UserError) as error:
            found(self.write(folder, content))
        assert str(error.value).startswith(f"{folder / 'captions.json'} {reason}")
        assert "\n" not in str(error.value)

    def test_a_document_too_large_is_not_read(self, folder: Path, monkeypatch) -> None:
        with (self.write(folder, []) / "captions.json").open("r+b") as file:
            file.truncate(10**9 + 1)
        with pytest.raises(UserError, match="captions.json is over 1,000,000,000 bytes; write it as .jsonl"):
            found(folder)


class TestTablesAsAWhole:
    @pytest.mark.parametrize(
        "name, content",
        [
            ("captions.jsonl", ""),
            ("metadata.jsonl", "\r\n\n"),
            ("captions.csv", ""),
            ("metadata.csv", "file,caption\n\n"),
            ("captions.json", "[]"),
            ("metadata.json", '{"images": [], "annotations": []}'),
        ],
    )
    def test_without_rows(self, folder: Path, name: str, content: str) -> None:
        (folder / name).write_text(content)
        assert found(folder) == ({}, [("a.png", f"image without caption: not in {name}")])

    def test_messages_stay_short_and_in_a_line(self, folder: Path) -> None:
        row = {"file": "a.png", **{f"column\n{i}": i for i in range(1000)}}
        (folder / "captions.jsonl").write_text(json.dumps(row))
        reason = found(folder)[1][0].reason
        assert reason.startswith("no such column: caption") and reason.endswith(" ...")
        assert "\n" not in reason and len(reason) < 500
        rows = [{"file": "a.png", "caption": "x", "split": f"{i}\n" * 99} for i in range(2000)]
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(UserError, match=r"--where split=train: no row .*; the field is one of: 0 0 ") as error:
            found(folder, CaptionRules(where="split=train"))
        assert "\n" not in str(error.value) and len(str(error.value)) < 500 + len(str(folder))

    def test_values_of_where_are_not_all_remembered(self, folder: Path) -> None:
        """20 MB of them."""
        rows = "".join(f"a.png,x,{i:01000d}\n" for i in range(20_000))
        (folder / "captions.csv").write_text(f"file,caption,split\n{rows}")
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match="no row of"):
                found(folder, CaptionRules(where="split=train"))
            assert tracemalloc.get_traced_memory()[1] < 5e6
        finally:
            tracemalloc.stop()

    def test_the_wanted_row_may_come_after_many_others(self, folder: Path) -> None:
        rows = [{"file": "a.png", "caption": f"dish {i}", "n": i} for i in range(3000)]
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert found(folder, CaptionRules(where="n=2999"))[0] == {"a": ("dish 2999",)}

    def test_a_field_longer_than_csv_may_have(self, folder: Path) -> None:
        (folder / "captions.csv").write_text('file,caption\na.png,"' + "x" * 200_000 + '"\na.png,fine\n')
        captions, problems = found(folder)
        assert captions == {"a": ("fine",)}
        assert problems[0] == ("captions.csv:2", "malformed CSV: field larger than field limit (131072)")

    @pytest.mark.parametrize("name", ["a\0b.png", "x" * 5000 + ".png", "\ud800.png", "a.png/b", "a\nb.png", "b\\a.png"])
    def test_names_that_no_file_can_have(self, folder: Path, name: str) -> None:
        rows: list[dict] = [{"file": name, "caption": "one"}, {"file": "a.png", "caption": "two"}]
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert found(folder) == ({"a": ("two",)}, [("captions.jsonl:1", f"missing file: {name}")])

    def test_files_that_the_listing_leaves_out_may_be_named(self, folder: Path) -> None:
        image(folder / ".hidden/b.png")
        (folder / "again").symlink_to(folder)
        rows = [{"file": ".hidden/b.png", "caption": "one"}, {"file": "again/a.png", "caption": "two"}]
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        assert found(folder)[0] == {".hidden/b": ("one",), "again/a": ("two",)}

    def test_parallel_names_with_other_suffixes_are_told_apart(self, folder: Path) -> None:
        image(folder / "a.webp")
        rows = [{"file": name, "caption": name} for name in ("a.png", "a.webp", "a.png")]
        (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        captions, problems = found(folder)
        assert captions == {"a": ("a.png",)}
        assert problems == [("captions.jsonl:2", "same name: a.webp and a.png differ only in the suffix")]


def test_the_usual_columns_come_in_order(folder: Path) -> None:
    row = {"path": "gone.png", "file": "a.png", "title": "no", "caption": "yes"}
    (folder / "captions.jsonl").write_text(json.dumps(row))
    assert found(folder) == ({"a": ("yes",)}, [])
