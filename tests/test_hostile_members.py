"""Tar members that no honest writer writes: refused by name, in little memory."""

import tarfile
from pathlib import Path

import pytest

from tests.hostile import ROOM, SHARD, build, data_end, members, outcome, plain, seal, tar_of
from tests.test_damaged import memory
from toolkit.data.tar_index import MAX_MEMBER_BYTES, index_tar
from toolkit.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound folder to be spoilt."""
    return build(tmp_path / "shards")


def repaired(info: tarfile.TarInfo, **places: bytes) -> bytes:
    """A header with bytes put in (`at124=b"..."`), its checksum right."""
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    for name, value in places.items():
        block[int(name[2:]) : int(name[2:]) + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


SAMPLE = members(1)
HUGE = b"\x80" + (2**40).to_bytes(11, "big")
NEGATIVE = b"\xff" * 10 + (2**16 - 512).to_bytes(2, "big")
LINKS = {"symlink": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "character device": tarfile.CHRTYPE,
         "block device": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}  # fmt: skip
MEMBERS = {
    **{name: plain("z.png", 0, type=kind, linkname="/etc/passwd").tobuf() for name, kind in LINKS.items()},
    "sparse": repaired(plain("z.png", 512), at156=b"S"),
    "a sparse file without its map": repaired(plain("z.png", 512), at156=b"S", at482=b"\1"),
    "an unknown type": repaired(plain("z.png", 512), at156=b"Q"),
    "above the cap": plain("z.png", MAX_MEMBER_BYTES + 1).tobuf(),
    "beyond all files": repaired(plain("z.png", 0), at124=HUGE),
    "negative": repaired(plain("z.png", 0), at124=NEGATIVE),
    "size no number": repaired(plain("z.png", 0), at124=b"hello world"),
    "a huge long name": repaired(plain("././@LongLink", 0, type=tarfile.GNUTYPE_LONGNAME), at124=HUGE),
    "a huge pax header": repaired(plain("pax", 0, type=tarfile.XHDTYPE), at124=HUGE),
    "a negative pax header": repaired(plain("pax", 0, type=tarfile.XHDTYPE), at124=NEGATIVE),
    "a pax header that is none": plain("pax", 512, type=tarfile.XHDTYPE).tobuf() + b"x" * 512,
    "a pax size that goes back":
        plain("z.png", 0, pax_headers={"size": "-4096", "comment": "x"}).tobuf(tarfile.PAX_FORMAT),
    "a chain of pax headers": plain("pax", 0, type=tarfile.XHDTYPE).tobuf() * 3000,
    "a chain of long names": plain("long", 0, type=tarfile.GNUTYPE_LONGNAME).tobuf() * 3000,
}  # fmt: skip


@pytest.mark.parametrize("what", MEMBERS)
def test_a_hostile_member(folder, what):
    path = folder / SHARD
    data = path.read_bytes()
    path.write_bytes(data[: data_end(data)] + MEMBERS[what] + bytes(10240))
    seal(folder)
    with memory(ROOM), pytest.raises(UserError, match=SHARD) as refused:
        index_tar(path, 0)
    if "huge" in what:  # refused before it is read, and not because memory ran out
        assert "a header of 1,099,511," in str(refused.value)
    assert outcome(folder) == "found"


def renamed(*names: str) -> list[tuple[str, bytes]]:
    return [(name, SAMPLE[("png", "txt", "npy").index(name[-3:])][1]) for name in names]


NAMES = {
    "above": renamed("../z.png", "../z.txt", "../z.npy"),
    "above in the middle": renamed("a/../../z.png", "a/../../z.txt", "a/../../z.npy"),
    "absolute": renamed("/z.png", "/z.txt", "/z.npy"),
    "backslashes": renamed("..\\z.png", "..\\z.txt", "..\\z.npy"),
    "control characters": renamed("z\x1b[2J.png", "z\x1b[2J.txt", "z\x1b[2J.npy"),
    "dotted": renamed("z.v1.png", "z.v1.txt", "z.v1.npy", "z.v2.png", "z.v2.txt", "z.v2.npy"),
    "half dotted": renamed("z.png", "z.txt", "z.npy", "z.v2.png", "z.png"),
    "interleaved": renamed("y.png", "z.png", "y.txt", "z.txt", "y.npy", "z.npy"),
    "duplicate beside": renamed("z.png", "z.txt", "z.npy", "z.png", "z.txt", "z.npy"),
    "duplicate apart": renamed("z.png", "z.txt", "z.npy", "y.png", "y.txt", "y.npy", "z.png", "z.txt", "z.npy"),
    "two folders": renamed("a/z.png", "b/z.txt", "b/z.npy"),
    "no key": renamed(".png", ".txt"),
    "no caption": renamed("z.png", "z.npy"),
    "two images": [*renamed("z.png"), ("z.jpg", b"x"), *renamed("z.txt", "z.npy")],
    "an empty caption": [*renamed("z.png"), ("z.txt", b""), *renamed("z.npy")],
}


@pytest.mark.parametrize("what", NAMES)
def test_hostile_names(folder, what):
    path = folder / SHARD
    path.write_bytes(tar_of(members(3) + NAMES[what]))
    seal(folder)
    try:
        rows = index_tar(path, 0)
    except UserError as error:
        assert SHARD in str(error) and "\n" not in str(error) and "\x1b" not in str(error)
    else:
        assert what == "an empty caption" and len(rows) == 4  # refused when it is read
    assert outcome(folder) == "found"
