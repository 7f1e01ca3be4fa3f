"""Samples beside their nearest training images: whether the generator draws, or remembers."""

from PIL import Image

from evaluation.report.page import brief, figure, image_tag, table
from evaluation.report.run_record import RunRecord
from evaluation.run_scores.reading import Evaluation, Pair
from shards.report.markup import shortened, text
from toolkit.data.decoding import decode_image
from toolkit.errors import UserError
from toolkit.run_folder.captioned_grid import GAP, SMALLEST_SIDE, TEXT_WIDTH

SIDE, WHOLE = 160, 1080


def neighbours(record: RunRecord) -> list[str]:
    page = ["<h2>Nearest training images</h2>"]
    newest = next((one for one in reversed(record.evaluations) if one.nearest), None)
    if newest is None:
        how = "<code>--metrics memorisation</code> of <code>python -m evaluation</code> looks for them"
        return [*page, f"<p>No evaluation holds any; {how}.</p>"]
    copies = sum(pair.distance == 0 for pair in newest.nearest)
    said = f"<b>Exact copies (distance 0): {copies}.</b> " if copies else ""
    where = "" if newest.step is None else f" of step {newest.step:,}"
    page.append(
        f"<p>The {len(newest.nearest)} samples{where} that come closest to a training image, by the distance of "
        f"features, nearest first. {said}Left the sample, right the training image.</p>"
    )
    image, why = _open(newest)
    pairs = cut_pairs(image) if image else []
    if pairs:
        blocks = (_block(pair, *sides) for pair, sides in zip(newest.nearest, pairs, strict=False))
        page += ['<div class="pairs">', *blocks, "</div>"]
    elif image:
        page.append(f'<div class="whole">{figure(image_tag(image, WHOLE, "samples and training images"), "")}</div>')
    else:
        page.append(f'<p class="note">The images cannot be shown: {text(why)}.</p>')
    rest = [_row(pair) for pair in newest.nearest[len(pairs) :]]
    return [*page, table(["distance", "sample", "training image"], rest, (0,))] if rest else page


def cut_pairs(image: Image.Image) -> list[tuple[Image.Image, Image.Image]]:
    """(sample, training image) of each row of a captioned grid with two columns; [] if it is laid out otherwise."""
    pitch, odd = divmod(image.width - TEXT_WIDTH - GAP, 2)
    side = pitch - GAP
    rows, rest = divmod(image.height - GAP, max(pitch, 1))
    if odd or rest or side < SMALLEST_SIDE:
        return []

    def cut(left: int, top: int) -> Image.Image:
        return image.crop((left, top, left + side, top + side))

    return [(cut(GAP, top), cut(GAP + pitch, top)) for top in (GAP + row * pitch for row in range(rows))]


def _open(one: Evaluation) -> tuple[Image.Image | None, str]:
    if one.nearest_image is None:
        return None, f"{one.path.name} names no image that lies beside it"
    try:
        return decode_image(one.nearest_image.read_bytes()), ""
    except (OSError, UserError) as error:
        return None, f"{one.nearest_image.name}: {getattr(error, 'strerror', None) or error}"


def _block(pair: Pair, sample: Image.Image, training: Image.Image) -> str:
    sides = [(sample, pair.caption, pair.sample), (training, pair.training_caption, pair.training)]
    figures = "".join(
        figure(image_tag(image, SIDE), f'{shortened(caption)} <span class="number">#{number}</span>')
        for image, caption, number in sides
    )
    return f'<div class="group"><b>distance {brief(pair.distance)}</b><div class="sheet">{figures}</div></div>'


def _row(pair: Pair) -> list[str]:
    sides = [(pair.sample, pair.caption), (pair.training, pair.training_caption)]
    return [brief(pair.distance), *(f"#{number} {shortened(caption)}" for number, caption in sides)]
