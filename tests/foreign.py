"""Data sets as img2dataset and clip-retrieval leave them, member by member as seen in real output of 1.47 and 2.45."""

import io
import json
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image

from tests.conftest import draw


def jpeg(number: int) -> bytes:
    data = io.BytesIO()
    draw(number).save(data, "JPEG", quality=95)
    return data.getvalue()


def write_tar(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    """Key -> suffix -> content, in this order, which need not be that of the keys."""
    with path.open("wb") as file:
        writer = webdataset.TarWriter(file, encoder=False)
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
        writer.close()


def sample(number: int, caption: str, **fields: object) -> dict[str, bytes]:
    """What img2dataset makes of an image that it got: JSON in ASCII with escapes, an empty .txt for no caption."""
    about = {"caption": caption, "url": f"http://host/{number}", "status": "success", "error_message": None, **fields}
    return {"jpg": jpeg(number), "json": json.dumps(about, indent=4).encode(), "txt": caption.encode()}


def img2dataset_folder(folder: Path) -> dict[str, str]:
    """Two tars of 5 and 4 images, out of order; one has no caption. Tar/key -> caption of the 8 others."""
    folder.mkdir()
    tars = {"00000": (2, 0, 1, 4, 3), "00001": (1, 0, 3, 2)}
    captions = {}
    for name, numbers in tars.items():
        samples = {}
        for number in numbers:
            key = f"{name}{number:04d}"
            caption = "" if key == "000000004" else f"ćevapi no {number}\n on  plate {name}"
            samples[key] = sample(number, caption, blip=f"a plate of {number}, {name}")
            if caption:
                captions[f"{name}.tar/{key}"] = " ".join(caption.split())
        write_tar(folder / f"{name}.tar", samples)
        (folder / f"{name}.parquet").write_bytes(b"its own list of what it tried")
        (folder / f"{name}_stats.json").write_text('{"count": 6, "successes": 5}')
    return captions


def clip_retrieval_folder(
    folder: Path, files: list[tuple[list[str], list[str], np.ndarray]], nested: bool = True, key: str = "image_path"
) -> None:
    """Per file the samples' keys, captions and vectors [rows, E]."""
    from pyarrow import parquet, table

    for number, (keys, captions, vectors) in enumerate(files):
        for name, suffix in (("text_emb", "npy"), ("metadata", "parquet")):
            path = folder / (name if nested else "") / f"{name}_{number:02d}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if suffix == "npy":
                np.save(path, vectors)
            else:
                columns = {key: keys, "caption": captions, "url": ["http://host"] * len(keys)}
                parquet.write_table(table(columns), path)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
