"""Fréchet Inception Distance between two sources of images: JSON with the number and how it was made."""

import json
from dataclasses import asdict, dataclass

from evaluation.options import EvaluationOptions, FakeOptions, InceptionOptions, ReferenceOptions
from evaluation.scoring.pipeline import single
from toolkit.command_line import run


@dataclass(frozen=True, kw_only=True)
class FidOptions(InceptionOptions, ReferenceOptions, FakeOptions):
    """Fréchet Inception Distance (lower is better) between two sources, with KID beside it, which few images do not
    bias: image folder, shard folder or checkpoint each."""

    real: str
    """The reference: an image folder, a shard folder (local or an address) or a checkpoint."""


def main(options: FidOptions) -> None:
    if report := fid(options):
        print(json.dumps(report, indent=1, ensure_ascii=False))


def fid(options: FidOptions) -> dict | None:
    """The report: "fid" (or "fid_768", ...), "kid", "protocol", "notes"; None on all but the main process.

    Raises UserError.
    """
    return single(
        EvaluationOptions(**asdict(options) | {"fake": [options.fake]}, metrics="fid,kid"), "fid", "inception"
    )


if __name__ == "__main__":
    run(main, FidOptions)
