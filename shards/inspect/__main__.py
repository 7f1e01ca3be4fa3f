"""What is in a shard folder, and is it sound? `python -m shards.inspect DIR [--verify]`."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from shards.inspect.bench import compare_speed
from shards.inspect.checks import (
    Check,
    check_captions,
    check_embeddings,
    check_encoder,
    check_hashes,
    check_images,
    check_index,
    check_sizes,
    image_format,
    read_evenly,
)
from toolkit.command_line import data_first, run
from toolkit.data.addresses import is_address
from toolkit.data.remote_shards import read_manifest
from toolkit.data.shard_format import Manifest
from toolkit.data.shard_reader import Sample
from toolkit.errors import UserError, check

EXAMPLES = 5


@dataclass(frozen=True)
class InspectOptions:
    """Describe and check a shard folder; exit code 1 if any check is BAD."""

    data: str
    """The shard folder, local or at an https://, s3:// or gs:// address; may also stand first without its flag."""
    verify: bool = False
    """Also read every byte and compare SHA-256 with the manifest, and the index with the tars; default false."""
    encoder: str = ""
    """Ask whether this encoder made the embeddings; default: the one the manifest names."""
    encoder_weights: Path | None = None
    """Local copy of the encoder's weights file; default: open_clip's cache or download."""
    samples: int = 64
    """Samples read, decoded and encoded again, evenly spread, 1 to 10000; default 64."""
    bench: bool = False
    """Also measure how fast the samples are read, beside plain webdataset on the same files; default false."""
    json: bool = False
    """Print one JSON object instead of lines; default false."""

    def __post_init__(self) -> None:
        check(1 <= self.samples <= 10_000, "--samples", self.samples, "from 1 to 10000")


def main(options: InspectOptions) -> None:
    manifest = read_manifest(options.data)
    checks, samples = _ask(options, manifest)
    facts = {
        "folder": str(options.data),
        "samples": manifest.samples,
        "distinct_captions": manifest.distinct_captions,
        "shards": len(manifest.shards),
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "resolution": manifest.resolution,
        "image_format": image_format(samples[0]) if samples else "unknown",
        "encoder": manifest.encoder.name,
        "dimension": manifest.encoder.dimension,
        "fingerprint": manifest.fingerprint,
    }
    examples = [list(samples[i * len(samples) // EXAMPLES].captions) for i in range(EXAMPLES) if samples]
    if options.json:
        content = facts | {"checks": [found._asdict() for found in checks], "examples": examples}
        print(json.dumps(content, indent=1, ensure_ascii=False))
    else:
        _print(facts, checks, examples)
    if failed := [found.name for found in checks if found.state == "BAD"]:
        sys.stdout.flush()
        raise UserError(f"{options.data} failed: {', '.join(failed)}")


def _ask(options: InspectOptions, manifest: Manifest) -> tuple[list[Check], list[Sample]]:
    sizes, shard_set = check_sizes(options.data, manifest, options.verify)
    if options.verify and not (shard_set is None and is_address(options.data)):
        hashes = check_hashes(shard_set.folder if shard_set else Path(options.data), manifest)
    else:
        hashes = Check("sha256", "not checked", "add --verify")
    if shard_set is None:
        return [sizes, hashes, Check("samples", "not checked", "the folder does not open")], []
    samples, readable = read_evenly(shard_set, options.samples)
    checks = [sizes, hashes, *([check_index(shard_set)] if options.verify else []), readable]
    if samples:
        checks += [
            check_images(samples, manifest),
            check_captions(samples),
            check_embeddings(samples, manifest.encoder.dimension),
            check_encoder(samples, manifest, options.encoder or manifest.encoder.name, options.encoder_weights),
            *([compare_speed(shard_set)] if options.bench else []),
        ]
    return checks, samples


def _print(facts: dict, checks: list[Check], examples: list[list[str]]) -> None:
    for name, value in facts.items():
        print(f"{name:<18}{value:,}" if isinstance(value, int) else f"{name:<18}{value}")
    for state, name, detail in ((found.state, found.name, found.detail) for found in checks):
        print(f"{state:<12}{name:<11}{detail}")
    print("captions, for example:")
    for captions in examples:
        print(f"  {' | '.join(captions)}")


if __name__ == "__main__":
    run(main, InspectOptions, data_first(sys.argv[1:]))
