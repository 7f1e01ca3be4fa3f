"""Captions in Parquet: the same as in other tables, little memory, and one line about what is no sound file."""

import datetime
import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from shards.caption_folder.parquet_tables import BATCH, ParquetTable
from shards.caption_folder.samples import CaptionRules, find_captions, find_samples
from toolkit.errors import UserError

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")

RULES = CaptionRules()


def table(folder: Path, name: str = "captions.parquet", row_group: int | None = None, **columns) -> Path:
    folder.mkdir(exist_ok=True)
    parquet.write_table(pyarrow.table(columns), folder / name, row_group_size=row_group)
    return folder / name


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)


def found(folder: Path, rules: CaptionRules = RULES) -> tuple[dict, list]:
    samples, problems = find_samples(folder, rules)
    return {sample.key: sample.captions for sample in samples}, problems


@pytest.mark.parametrize("name", ["captions.parquet", "metadata.parquet"])
def test_captions_and_faults_by_row(tmp_path: Path, name: str) -> None:
    images(tmp_path, "a.png", "b/ž.png", "bare.png")
    files = ["./a.png", "b/ž.png", "a.png", "a.png", "gone.png", "../a.png", None, "", "a.png"]
    texts = ["ćevapi", "борщ 🍲", "ćevapi", "two", "x", "x", "x", "x", None]
    table(tmp_path, name, file_name=files, text=texts)
    captions, problems = found(tmp_path)
    assert captions == {"a": ("ćevapi", "two"), "b/ž": ("борщ 🍲",)}
    assert problems == [
        (f"{name}:5", "missing file: gone.png"),
        (f"{name}:6", "path leaves the folder: ../a.png"),
        (f"{name}:7", "no file name: found None"),
        (f"{name}:8", "no file name: found ''"),
        (f"{name}:9", "empty caption"),
        ("bare.png", f"image without caption: not in {name}"),
    ]
    assert find_captions(tmp_path, RULES)[0]["a"] == ("ćevapi", "two")


def test_lists_dictionaries_and_other_types(tmp_path: Path) -> None:
    images(tmp_path, *(f"{i}.png" for i in range(4)))
    files = pyarrow.array([f"{i}.png" for i in range(4)]).dictionary_encode()
    table(tmp_path, file=files, captions=pyarrow.array([["one", "uno"], ["two"], [], None]))
    captions, problems = found(tmp_path)
    assert captions == {"0": ("one", "uno"), "1": ("two",)}
    assert problems == [
        ("captions.parquet:3", "caption is no text: found list"),
        ("captions.parquet:4", "empty caption"),
    ]
    table(tmp_path, file=files.cast(pyarrow.large_string()), caption=pyarrow.array([1, 2, 3, 4]))
    assert [reason for _, reason in found(tmp_path)[1]] == ["caption is no text: found int"] * 4


@pytest.mark.parametrize(
    "where, expected",
    [
        ("split=train", "02"),
        ("n=3", "2"),
        ("n=null", "1"),
        ("good=true", "01"),
        ("score=0.5", "0"),
        ("day=2020-02-29", "1"),
    ],
)
def test_where(tmp_path: Path, where: str, expected: str) -> None:
    names = ["0.png", "1.png", "2.png"]
    images(tmp_path, *names)
    days = [datetime.date(2020, 2, day) for day in (28, 29, 1)]
    columns = {"split": ["train", "test", "train"], "n": [1, None, 3], "good": [True, True, False]}
    table(tmp_path, file=names, caption=["x", "y", "z"], score=[0.5, 1.0, 2.0], day=days, **columns)
    assert "".join(found(tmp_path, CaptionRules(where=where))[0]) == expected


def test_where_without_such_a_row(tmp_path: Path) -> None:
    images(tmp_path, "0.png")
    table(tmp_path, file=["0.png"], caption=["x"], split=["train"])
    with pytest.raises(UserError, match="--where split=tset: no row of .*captions.parquet has that.*one of: train"):
        found(tmp_path, CaptionRules(where="split=tset"))


def test_columns_are_looked_for_before_any_row(tmp_path: Path) -> None:
    images(tmp_path, "0.png")
    path = table(tmp_path, photo=["0.png"] * 3, alt=["x"] * 3)
    with pytest.raises(UserError) as error:
        found(tmp_path)
    usual = "file or file_name or filename or image or path"
    assert str(error.value) == f"{path}: no such column: {usual}; it has photo, alt"
    with pytest.raises(UserError, match="no such column: caption or captions or text or title; it has photo, alt"):
        found(tmp_path, CaptionRules(file_column="photo"))
    assert found(tmp_path, CaptionRules(file_column="photo", caption_column="alt"))[0] == {"0": ("x",)}


def test_rows_count_on_over_batches_and_row_groups(tmp_path: Path) -> None:
    count = 2 * BATCH + 7
    path = table(tmp_path, row_group=BATCH + 3, file=[f"{i}.png" for i in range(count)], caption=["x"] * count)
    rows = list(ParquetTable(path).rows({"file"}))
    assert rows == [(i + 1, {"file": f"{i}.png"}) for i in range(count)]


def test_a_byte_that_is_no_text_costs_its_caption_alone(tmp_path: Path) -> None:
    images(tmp_path, "0.png", "1.png", "2.png")
    texts = pyarrow.array([b"caf\xe9", "café".encode(), b"fine", b"caf\xe9"]).view(pyarrow.string())
    lists = pyarrow.ListArray.from_arrays([0, 2, 3, 4], texts)
    places = [f"captions.parquet:{row}" for row in (1, 3)]
    for column in (lists, lists.cast(pyarrow.large_list(pyarrow.string()))):
        table(tmp_path, file=["0.png", "1.png", "2.png"], captions=column)
        captions, problems = found(tmp_path)
        assert captions == {"0": ("café",), "1": ("fine",)}
        assert problems == [(place, "not UTF-8: 0xE9 in the caption") for place in places]


def test_values_that_python_lacks_cost_their_row_alone(tmp_path: Path) -> None:
    """The year 29349."""
    images(tmp_path, "0.png", "1.png")
    days = pyarrow.array([10**7, 1], pyarrow.int32()).cast(pyarrow.date32())
    table(tmp_path, file=["0.png", "1.png"], caption=["x", "y"], day=days)
    captions, problems = found(tmp_path, CaptionRules(where="day=1970-01-02"))
    assert captions == {"1": ("y",)}
    assert problems[0].path == "captions.parquet:1" and problems[0].reason.startswith("bad value: ")


def test_images_inside_the_table_are_refused_in_few_words(tmp_path: Path) -> None:
    """As some hubs publish them; the message must not be the image."""
    images(tmp_path, "0.png")
    table(tmp_path, image=[{"bytes": bytes(10**6), "path": None}], text=["x"])
    captions, problems = found(tmp_path)
    assert captions == {} and problems[0].reason.startswith("no file name: found {'bytes': b'")
    assert len(problems[0].reason) < 150


def test_memory_is_bounded_and_other_columns_stay_unread(tmp_path: Path, monkeypatch) -> None:
    """One row group with 64 MB of captions and as much of something else: read and held a few MB at a time."""
    count = 2**14
    names = [f"{i}.png" for i in range(count)]
    texts = [f"{i:08d}" * 512 for i in range(count)]
    columns = pyarrow.table({"file": names, "caption": texts, "image_bytes": texts})
    parquet.write_table(columns, tmp_path / "captions.parquet", compression="none", use_dictionary=False)
    del texts, columns
    reads = []

    class Recording(io.FileIO):
        def read(self, size: int = -1) -> bytes:
            reads.append(len(data := super().read(size)))
            return data

    monkeypatch.setattr(Path, "open", lambda path, mode: Recording(path, mode))
    before, most = pyarrow.total_allocated_bytes(), 0
    for number, fields in ParquetTable(tmp_path / "captions.parquet").rows({"file", "caption"}):
        assert set(fields) == {"file", "caption"} and len(fields["caption"]) == 4096
        if number % 500 == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before)
    assert number == count and most < 16 * 2**20
    assert max(reads) < 4 * 2**20 and 64 * 2**20 < sum(reads) < 80 * 2**20


def sound(folder: Path) -> bytes:
    count = 3000
    path = table(folder, file=[f"{i}.png" for i in range(count)], caption=[f"dish {i} of many" for i in range(count)])
    return path.read_bytes()


@pytest.mark.parametrize("what", ["empty", "text", "csv", "front cut off", "cut", "cut by a byte", "zeros inside"])
def test_what_is_no_sound_parquet_is_told_in_one_line(tmp_path: Path, what: str) -> None:
    data = sound(tmp_path)
    spoilt = {
        "empty": b"",
        "text": b"PAR1",
        "csv": b"file,caption\na.png,one\n" * 10,
        "front cut off": data[len(data) // 2 :],
        "cut": data[: len(data) // 2],
        "cut by a byte": data[:-1],
        "zeros inside": data[:100] + bytes(len(data) // 2) + data[100 + len(data) // 2 :],
    }[what]
    (tmp_path / "captions.parquet").write_bytes(spoilt)
    with pytest.raises(UserError) as error:
        find_captions(tmp_path, RULES)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'captions.parquet'} cannot be read as Parquet: ")
    assert "\n" not in message and len(message) < 300 + len(str(tmp_path))


def test_a_checksum_finds_a_flipped_bit(tmp_path: Path) -> None:
    columns = pyarrow.table({"file": ["a.png"] * 9, "caption": ["a photo of burek"] * 9})
    path = tmp_path / "captions.parquet"
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    parquet.write_table(columns, path, write_page_checksum=True, **plain)
    data = bytearray(path.read_bytes())
    data[data.index(b"burek")] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="captions.parquet cannot be read as Parquet: .*CRC"):
        find_captions(tmp_path, RULES)


def test_without_pyarrow(tmp_path: Path, monkeypatch) -> None:
    sound(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match="captions.parquet needs pyarrow to be read: pip install pyarrow$"):
        find_captions(tmp_path, RULES)
    (tmp_path / "captions.jsonl").write_text('{"file": "a.png", "caption": "one"}')
    assert find_captions(tmp_path, RULES)[0] == {"a": ("one",)}


def test_a_pyarrow_that_unpickles_is_refused(tmp_path: Path, monkeypatch) -> None:
    sound(tmp_path)
    monkeypatch.setattr(pyarrow, "__version__", "14.0.0")
    with pytest.raises(UserError, match="needs pyarrow 17 or later, not 14.0.0: pip install -U pyarrow"):
        find_captions(tmp_path, RULES)


def test_an_unreadable_file(tmp_path: Path, monkeypatch) -> None:
    sound(tmp_path)

    def refuse(self, *how):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="captions.parquet cannot be read as Parquet: .*Permission denied"):
        find_captions(tmp_path, RULES)
