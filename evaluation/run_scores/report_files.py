"""A report as files: JSON, and the images of pairs beside it."""

import io
import json
from pathlib import Path

from toolkit.durable import write_whole
from toolkit.errors import UserError


def write_report(report: dict, path: Path) -> dict:
    """Write `path` (.json) and, where there are "images", NAME_nearest.png beside it. Returns what the file holds.

    Raises UserError where that is impossible; nothing is half written.
    """
    report = dict(report)
    images = report.pop("images", None)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if images is not None:
            file = io.BytesIO()
            images.save(file, "PNG")
            report["nearest_image"] = f"{path.stem}_nearest.png"
            write_whole(path.with_name(report["nearest_image"]), file.getvalue())
        write_whole(path, as_json(report).encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}); make room or choose another --out") from None
    return report


def as_json(report: dict) -> str:
    return json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
