"""What this page's sections are made of, beside the pieces of shards.report: tables, images, figures as PNG."""

import base64
import io

from PIL import Image

from shards.report import markup
from shards.report.markup import text

CRISP_UP_TO = 64
"""Pixels; smaller images are embedded without loss, which costs little and shows what was drawn."""
STYLE = """
.scroll { overflow-x: auto; margin: 8px 0 12px; }
table { border-collapse: collapse; font-size: .9em; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-bottom: 1px solid #e3e6e9; }
th { color: #5a6069; font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td.t { min-width: 11em; max-width: 34em; overflow-wrap: anywhere; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 10px; }
.curves figure img, .whole figure img { max-width: 100%; outline: none; background: #fff; }
.steps { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 104px)); gap: 8px; margin: 4px 0 18px; }
.warn { background: #fdf3e1; border-left: 4px solid #d98c00; border-radius: 0 8px 8px 0; padding: 8px 14px;
  margin: 10px 0; }
.warn p { margin: 2px 0; }
code { overflow-wrap: anywhere; }
td small { color: #5a6069; }
@media (max-width: 480px) {
  th, td { padding-right: 9px; }
  th, th.n { white-space: normal; }
  td.t { min-width: 6em; }
  td.t:first-child { min-width: 10em; }
}
pre { background: #f4f6f8; border-radius: 8px; padding: 10px 14px; overflow-x: auto; font-size: .85em; }
"""


def document(title: str, body: list[str]) -> str:
    return markup.document(title, body, STYLE)


def table(head: list[str], rows: list[list[str]], numbers: tuple[int, ...] = ()) -> str:
    """HTML cells -> a table that scrolls by itself where the screen is narrow; columns of `numbers` stand right."""

    def line(tag: str, cells: list[str]) -> str:
        looks = ("n" if i in numbers else "t" for i in range(len(cells)))
        return (
            "<tr>"
            + "".join(f'<{tag} class="{look}">{c}</{tag}>' for look, c in zip(looks, cells, strict=True))
            + "</tr>"
        )

    return f'<div class="scroll"><table>{line("th", head)}{"".join(line("td", row) for row in rows)}</table></div>'


def warning(paragraphs: list[str]) -> str:
    """HTML lines in a box that catches the eye."""
    return '<div class="warn">' + "".join(f"<p>{one}</p>" for one in paragraphs) + "</div>"


def image_tag(image: Image.Image, side: int, alt: str = "") -> str:
    """RGB -> an <img> of at most `side` px, carried by the page itself."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    crisp = max(small.size) <= CRISP_UP_TO
    small.save(data, **({"format": "PNG"} if crisp else {"format": "JPEG", "quality": 85}))
    return embedded(data.getvalue(), "png" if crisp else "jpeg", small.size, alt)


def embedded(data: bytes, kind: str, size: tuple[int, int], alt: str) -> str:
    source = base64.b64encode(data).decode()
    described = markup.text_in_svg(alt)  # an attribute: no <bdi> here either
    return f'<img src="data:image/{kind};base64,{source}" width="{size[0]}" height="{size[1]}" alt="{described}">'


def figure(image: str, caption: str) -> str:
    """An <img> over its HTML caption."""
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def count(number: int, what: str) -> str:
    """'1 rollback', '2 rollbacks'."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def brief(value: float | None) -> str:
    """Four digits that count; what is missing is a dash."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def code(value: object) -> str:
    return f"<code>{text(value)}</code>"
