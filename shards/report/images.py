"""The sections of the page that show images: near-duplicates, nearest captions, a contact sheet."""

import torch

from shards.near_duplicates import COLOUR_TOLERANCE, group
from shards.report.findings import Findings
from shards.report.markup import figure, shortened, thumbnail
from shards.report.nearest_captions import nearest_pairs
from toolkit.data.decoding import decode_image
from toolkit.data.shard_reader import ShardSet
from toolkit.draws import integer

GROUPS_SHOWN, MEMBERS_SHOWN = 24, 6
THUMBNAIL = 112
"""Pixels: sharp on a page that shows them a little over 100 px wide, some 4 kB each."""


def show(shard_set: ShardSet, number: int) -> str:
    """Sample `number`, which has been read before, as a figure."""
    sample = shard_set.read(number)
    return figure(thumbnail(decode_image(sample.image), THUMBNAIL), number, sample.captions)


def near_duplicates(shard_set: ShardSet, found: Findings, bits: int) -> list[str]:
    groups, complete = group(found.look_pairs, bits)
    page = ["<h2>Images that look alike</h2>"]
    if groups:
        copies = sum(len(members) - 1 for members in groups)
        page.append(
            f"<p><b>{sum(map(len, groups)):,} images in {len(groups):,} groups.</b> With one of each group kept, "
            f"{copies:,} images ({copies / len(found.numbers):.1%}) would go.</p>"
        )
    else:
        page.append(f"<p>None among the {len(found.numbers):,} images.</p>")
    how = "" if complete else " There are too many similar ones to compare all; some pairs may be missing."
    page.append(
        f'<p class="note">Alike: at most {bits} of 64 bits of a perceptual hash differ from the first of the group '
        f"(<code>--near</code>), and the mean colours by at most {COLOUR_TOLERANCE} of 255 levels.{how}</p>"
    )
    for members in groups[:GROUPS_SHOWN]:
        shown = "".join(show(shard_set, found.numbers[place]) for place in members[:MEMBERS_SHOWN])
        more = (
            f'<p class="note">… and {len(members) - MEMBERS_SHOWN:,} more</p>' if len(members) > MEMBERS_SHOWN else ""
        )
        page.append(f'<div class="group"><div class="sheet">{shown}</div>{more}</div>')
    if len(groups) > GROUPS_SHOWN:
        page.append(f'<p class="note">… and {len(groups) - GROUPS_SHOWN:,} smaller groups</p>')
    return page


def nearest_captions(shard_set: ShardSet, found: Findings, count: int) -> list[str]:
    page = ["<h2>Captions that lie closest together</h2>"]
    captions = list(found.pool)
    if len(captions) < 2:
        return [*page, "<p>There are no two different captions to compare.</p>"]
    pairs = nearest_pairs(torch.stack([vector for _, vector in found.pool.values()]), count)
    encoder = shortened(shard_set.manifest.encoder.name)
    page.append(
        f'<p class="note">Cosine of the embeddings by {encoder}, each of {len(captions):,} different captions against '
        "all the others. At 1.000 a generator cannot tell the two captions apart.</p>"
    )
    page.append('<div class="pairs">')
    for first, second, cosine in pairs:
        sides = "".join(_beside(shard_set, found, captions[place]) for place in (first, second))
        page.append(f'<div class="group"><b>{cosine:.3f}</b><div class="sheet">{sides}</div></div>')
    return [*page, "</div>"]


def _beside(shard_set: ShardSet, found: Findings, caption: str) -> str:
    """An image of that caption; the caption itself, though the image may have others."""
    number, _ = found.pool[caption]
    image = decode_image(shard_set.read(number).image)
    return figure(thumbnail(image, THUMBNAIL), number, (caption,))


def contact_sheet(shard_set: ShardSet, found: Findings, count: int, seed: int) -> list[str]:
    """Distinct random samples of those read, in ascending order; the same for the same seed."""
    total = len(found.numbers)
    places: set[int] = set()
    draw = 0
    while len(places) < min(count, total):
        places.add(integer(total, seed, "contact sheet", draw))
        draw += 1
    shown = "".join(show(shard_set, found.numbers[place]) for place in sorted(places))
    note = (
        f'<p class="note">{len(places):,} drawn at random (<code>--seed {seed}</code>); #… is the sample\'s number.</p>'
    )
    return ["<h2>Some of the images</h2>", note, f'<div class="sheet">{shown}</div>']
