"""The sections of the page that tell numbers: what is here, what was left out, captions, sizes."""

import math
from collections import Counter

from shards.report.findings import Findings
from shards.report.markup import bars, facts, folded, histogram, shortened, text
from toolkit.data.shard_format import Manifest

WORDS_SHOWN, TEXTS_SHOWN, SKIPPED_SHOWN = 30, 10, 1000
BINS = 12
EVERYWHERE = 0.9
"""A word in more captions than this is the template's, not the images'."""
RATIOS = ("1:3", "1:2", "9:16", "2:3", "3:4", "4:5", "1:1", "5:4", "4:3", "3:2", "16:9", "2:1", "3:1")
"""Width to height."""


def overview(manifest: Manifest, found: Findings, asked: int, skipped: list[dict] | None) -> list[str]:
    size = sum(shard.bytes for shard in manifest.shards)
    tiles = [
        ("samples", f"{manifest.samples:,}"),
        ("distinct captions", f"{manifest.distinct_captions:,}"),
        ("left out", "not recorded" if skipped is None else f"{len(skipped):,}"),
        ("pixels", f"{manifest.resolution} × {manifest.resolution}"),
        (f"in {len(manifest.shards):,} shard{'s' * (len(manifest.shards) != 1)}", megabytes(size)),
        (f"encoder, {manifest.encoder.dimension} numbers", manifest.encoder.name),
    ]
    read = len(found.numbers) + found.damaged_count
    how = "All samples were read" if read == manifest.samples else f"Of these, {read:,} were read, evenly spread"
    limit = f"At most {asked:,} are read (<code>--samples</code>)."
    print_of = f"Fingerprint of the data: <code>{text(manifest.fingerprint[:16])}</code>."
    page = [facts(tiles), f'<p class="note">{how}; what follows is about those. {limit} {print_of}</p>']
    if found.damaged_count:
        title = f"<b>{found.damaged_count:,} damaged</b> samples cannot be read; build the shards again"
        page.append(folded(title, [text(message) for message in found.damaged], found.damaged_count))
    return page


def left_out(skipped: list[dict] | None) -> list[str]:
    """What the build skipped, by kind of reason, file by file."""
    page = ["<h2>What was left out</h2>"]
    if skipped is None:
        return [*page, "<p>Not recorded: the folder has no report.json.</p>"]
    if not skipped:
        return [*page, "<p>Nothing: every image and caption found was used.</p>"]
    groups: dict[str, list[str]] = {}
    for entry in skipped:
        kind, _, detail = entry["reason"].partition(":")
        groups.setdefault(kind.strip(), []).append(f"{text(entry['path'])} {text(detail.strip())}".strip())
    for kind, items in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])):
        page.append(folded(f"<b>{len(items):,}</b> {text(kind)}", items[:SKIPPED_SHOWN], len(items)))
    return page


def captions(found: Findings) -> list[str]:
    page = ["<h2>Captions</h2>"]
    if not found.captions:
        return [*page, "<p>None could be read.</p>"]
    shares = found.words.top(WORDS_SHOWN * 3)
    everywhere = [word for word, count in shares if count > EVERYWHERE * found.captions]
    words = [pair for pair in shares if pair[0] not in everywhere][:WORDS_SHOWN]
    many = {number: count for number, count in found.per_image.items() if number > 1}
    several = f"{sum(many.values()):,} have several, {max(many)} at most." if many else "one each."
    page.append(f"<p>{found.captions:,} captions of {sum(found.per_image.values()):,} images; {several}</p>")
    page.append('<div class="columns"><div>')
    page += ["<h3>Length</h3>", length_histogram(found.lengths), _length_words(found.lengths)]
    repeated = [(caption, count) for caption, count in found.texts.top(TEXTS_SHOWN) if count > 1]
    page.append("<h3>Captions used most often</h3>")
    if repeated:
        page.append("<ul>" + "".join(f"<li>{count:,} × {shortened(caption)}</li>" for caption, count in repeated))
        page.append("</ul>")
    else:
        page.append("<p>Every caption is used once.</p>")
    page.append("</div><div><h3>Words used most</h3>")
    page.append(bars(words) if words else "<p>No words but those in nearly every caption.</p>")
    also = f" In over {EVERYWHERE:.0%} of the captions: {', '.join(map(text, everywhere))}." if everywhere else ""
    bound = " Rare words were forgotten on the way: counts are lower bounds." if found.words.forgot else ""
    note = "Captions with the word. Not counted: numbers, single letters, and articles and the like (English, Serbian)."
    page.append(f'<p class="note">{note}{also}{bound}</p></div></div>')
    return page


def length_histogram(lengths: Counter) -> str:
    """Bars of equal, whole width over all lengths; the last 1 % in one open bin, or one long text would flatten all."""
    shortest = min(lengths)
    usual = quantile(lengths, 0.99)
    width = max(1, -(-(usual - shortest + 1) // (BINS - 1)))
    counts: Counter[int] = Counter()
    for length, count in lengths.items():
        counts[min((length - shortest) // width, (usual - shortest) // width + (length > usual))] += count
    last = max(counts)
    labels = [f"{shortest + i * width}" for i in range(last + 1)]
    if max(lengths) >= shortest + (last + 1) * width:
        labels[-1] += "+"
    axis = "characters" if width == 1 else f"characters, from … ({width} a bar)"
    return histogram([(label, counts[i]) for i, label in enumerate(labels)], axis)


def _length_words(lengths: Counter) -> str:
    return (
        f'<p class="note">Shortest {min(lengths):,}, median {quantile(lengths, 0.5):,}, longest {max(lengths):,} '
        "characters.</p>"
    )


def quantile(counts: Counter, share: float) -> int:
    """Smallest value that at least `share` of the counted do not exceed."""
    seen, needed = 0, share * sum(counts.values())
    for value in sorted(counts):
        seen += counts[value]
        if seen >= needed:
            return value
    raise ValueError("nothing counted")


def source_sizes(found: Findings, resolution: int) -> list[str]:
    page = ["<h2>Sizes of the source images</h2>"]
    if not found.sizes:
        return [*page, "<p>Not recorded in these shards (KEY.json with width and height).</p>"]
    sizes = list(zip(found.sizes[::2], found.sizes[1::2], strict=True))
    small = sum(min(size) < resolution for size in sizes)
    kept = sorted(min(size) / max(size) for size in sizes)[len(sizes) // 2]
    page.append(
        f"<p>Short side under {resolution} px, enlarged when stored: {small:,} of {len(sizes):,} "
        f"({small / len(sizes):.1%}). A square cut from the middle holds {kept:.0%} of the median image's area.</p>"
    )
    sides = Counter(int(math.log2(min(size))) for size in sizes)
    rows = [
        (f"{2**power:,} – {2 ** (power + 1) - 1:,} px", sides[power]) for power in range(min(sides), max(sides) + 1)
    ]
    ratios = Counter(nearest_ratio(*size) for size in sizes)
    page.append('<div class="columns"><div><h3>Short side</h3>')
    page += [bars(rows), "</div><div><h3>Width : height, nearest of the usual</h3>"]
    page += [bars([(ratio, ratios[ratio]) for ratio in RATIOS if ratios[ratio]]), "</div></div>"]
    return page


def nearest_ratio(width: int, height: int) -> str:
    """Which of RATIOS is the closest on a logarithmic scale; 1:3 and 3:1 stand for all beyond too."""
    return min(RATIOS, key=lambda ratio: abs(math.log(width / height) - math.log(_value(ratio))))


def _value(ratio: str) -> float:
    width, height = ratio.split(":")
    return int(width) / int(height)


def megabytes(count: int) -> str:
    """1234567 -> '1.2 MB'."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
