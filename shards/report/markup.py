"""Pieces of the page: text made safe, folded lists, bars, a histogram, images. No script, nothing from outside."""

import base64
import html
import io
import unicodedata

from PIL import Image

OPEN_UP_TO = 10
"""Longer lists are folded."""

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 64px; background: #fff; color: #1c1e21;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7em; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.2em; margin: 44px 0 8px; padding-top: 14px; border-top: 1px solid #d9dce0; }
h3 { font-size: 1em; margin: 22px 0 6px; }
p { margin: 6px 0 12px; max-width: 46em; }
.note { color: #5a6069; font-size: .9em; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; margin: 18px 0; }
.facts div { background: #f4f6f8; border-radius: 8px; padding: 10px 14px; }
.facts b { display: block; font-size: 1.3em; line-height: 1.3; overflow-wrap: anywhere; }
.facts span { color: #5a6069; font-size: .85em; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 0 40px; }
.bars { display: grid; grid-template-columns: fit-content(45%) 1fr; gap: 3px 12px; align-items: center;
  font-size: .9em; }
.bars .label { text-align: right; overflow-wrap: anywhere; }
.bars .bar { display: flex; align-items: center; gap: 8px; white-space: nowrap; }
.bars i { display: block; height: 15px; min-width: 2px; background: #4f81bd; border-radius: 0 3px 3px 0; }
svg { width: 100%; max-width: 560px; height: auto; display: block; }
svg rect { fill: #4f81bd; }
svg text { font-size: 13px; fill: #1c1e21; text-anchor: middle; font-family: inherit; }
svg line { stroke: #9aa1aa; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 14px 12px; }
figure { margin: 0; min-width: 0; }
figure img { width: 100%; max-width: 160px; height: auto; display: block; border-radius: 4px; background: #f4f6f8;
  outline: 1px solid #e3e6e9; }
figcaption { font-size: .8em; line-height: 1.35; margin-top: 4px; overflow-wrap: anywhere; }
figcaption small, .number { color: #5a6069; font-size: .9em; }
.group { background: #f4f6f8; border-radius: 8px; padding: 12px; margin: 0 0 12px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 12px; }
.pairs .group { margin: 0; }
.pairs .sheet { grid-template-columns: 1fr 1fr; }
.pairs figure img { max-width: 100%; }
.pairs b { display: block; margin-bottom: 6px; font-size: .9em; }
details { margin: 0 0 10px; }
summary { cursor: pointer; }
ul { margin: 4px 0 8px; padding-left: 1.3em; font-size: .9em; overflow-wrap: anywhere; }
@media (max-width: 480px) {
  body { padding: 16px 14px 48px; }
  .sheet { grid-template-columns: repeat(auto-fill, minmax(96px, 1fr)); }
  .facts { grid-template-columns: 1fr 1fr; gap: 8px; }
}
"""


def text(value: object) -> str:
    """Any text as HTML that shows it and does nothing: markup escaped, control characters replaced, direction its own.

    A caption may hold tags, and marks that turn the reading direction of what follows; <bdi> keeps them to itself.
    """
    plain = "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") else c for c in str(value))
    return f"<bdi>{html.escape(plain)}</bdi>"


def shortened(value: str, limit: int = 160) -> str:
    """`text` of the beginning of a long one."""
    return text(value if len(value) <= limit else value[: limit - 1].rstrip() + "…")


def folded(summary: str, items: list[str], total: int | None = None) -> str:
    """A list under its HTML `summary`, closed if it is long; `total` items if not all of them are given."""
    left_out = (total or len(items)) - len(items)
    rows = "".join(f"<li>{item}</li>" for item in items)
    if left_out:
        rows += f"<li>… and {left_out:,} more</li>"
    state = " open" if len(items) <= OPEN_UP_TO else ""
    return f"<details{state}><summary>{summary}</summary><ul>{rows}</ul></details>"


def facts(pairs: list[tuple[str, str]]) -> str:
    """(name, value) -> tiles."""
    tiles = "".join(f"<div><b>{text(value)}</b><span>{text(name)}</span></div>" for name, value in pairs)
    return f'<div class="facts">{tiles}</div>'


def bars(rows: list[tuple[str, int]]) -> str:
    """(label, count) -> horizontal bars, each with its count."""
    most = max(count for _, count in rows)
    return '<div class="bars">' + "".join(
        f'<span class="label">{text(label)}</span>'
        f'<span class="bar"><i style="width:{75 * count / most:.1f}%"></i>{count:,}</span>'
        for label, count in rows
    ) + "</div>"  # fmt: skip


def histogram(rows: list[tuple[str, int]], axis: str) -> str:
    """(label, count) -> upright bars as SVG, counts above and labels below; at most about 12 fit."""
    width, height, top, bottom = 480, 230, 20, 44
    most, step = max(count for _, count in rows), 480 / len(rows)
    parts = []
    for i, (label, count) in enumerate(rows):
        tall, middle = (height - top - bottom) * count / most, (i + 0.5) * step
        left, upper = i * step + 2, height - bottom - tall
        parts.append(
            f'<rect x="{left:.1f}" y="{upper:.1f}" width="{step - 4:.1f}" height="{tall:.1f}"/>'
            f'<text x="{middle:.1f}" y="{height - bottom + 16}">{text_in_svg(label)}</text>'
        )
        if count:
            parts.append(f'<text x="{middle:.1f}" y="{height - bottom - tall - 5:.1f}">{brief(count)}</text>')
    parts.append(f'<line x1="0" x2="{width}" y1="{height - bottom}" y2="{height - bottom}"/>')
    parts.append(f'<text x="{width / 2:.0f}" y="{height - 6}">{text_in_svg(axis)}</text>')
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(axis)}">{"".join(parts)}</svg>'


def text_in_svg(value: str) -> str:
    return html.escape(value)  # SVG knows no <bdi>


def brief(count: int) -> str:
    """1234 -> '1234', 45678 -> '46k', 3456789 -> '3.5M'."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


def thumbnail(image: Image.Image, side: int) -> str:
    """RGB image -> an <img> that carries it as a JPEG of at most `side` px."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    small.save(data, "JPEG", quality=75)
    source = base64.b64encode(data.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{source}" width="{small.width}" height="{small.height}" alt="">'


def figure(image: str, number: int, captions: tuple[str, ...]) -> str:
    """An image with its sample number and captions; of several the first and how many more."""
    more = f" <small>+{len(captions) - 1}</small>" if len(captions) > 1 else ""
    return (
        f"<figure>{image}<figcaption>{shortened(captions[0])}{more} "
        f'<span class="number">#{number}</span></figcaption></figure>'
    )


def document(title: str, body: list[str], style: str = "") -> str:
    """The whole page, `style` being what it has of its own.

    The policy forbids scripts and the network, should anything ever slip through the escaping.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
