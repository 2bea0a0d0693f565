"""A page of HTML that needs nothing beside it: tables, figures and pictures in one file, for a browser of any width."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# No script, nothing from elsewhere: what a stranger's class names say is text, and the page loads nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1rem; }
body { overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; }
caption { text-align: left; color: GrayText; padding-bottom: .2rem; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #8884; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: white; }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .8rem; }
.pictures figure { margin: 0; } .pictures img { width: 100%; aspect-ratio: 1; object-fit: contain; }
.pixels img { image-rendering: pixelated; }
figcaption { font-size: .85rem; }
@media (max-width: 30rem) { table { font-size: .85rem; } th, td { padding: .15rem .3rem; } }
""".strip()


@dataclass(frozen=True)
class Picture:
    """A picture: the bytes of its file, of this kind ("png", "jpeg"), and what stands below it."""

    data: bytes
    caption: str
    kind: str = "png"


@dataclass(frozen=True)
class Section:
    """A part of a page: lines of text, tables by their captions, figures below one another, pictures in a grid.

    `folded` tables are opened by a click; pictures of few `pixels` are enlarged without smoothing.
    """

    title: str
    text: Sequence[str] = ()
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
    figures: Sequence[Picture] = ()
    pictures: Sequence[Picture] = ()
    folded: bool = False
    pixels: bool = False


def figure_picture(figure: Figure, caption: str) -> Picture:
    """Return a figure as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return Picture(file.getvalue(), caption)


def page_html(title: str, sections: Sequence[Section]) -> str:
    """Return the page; every text is shown as it is, whatever signs it holds."""
    head = (
        '<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>"
    )
    body = "\n".join([f"<h1>{html.escape(title)}</h1>", *map(section_html, sections)])
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def section_html(section: Section) -> str:
    """Return a section."""
    parts = [f"<p>{html.escape(line)}</p>" for line in section.text]
    tables = [table_html(caption, table) for caption, table in section.tables.items()]
    if section.folded:
        tables = [f"<details>\n<summary>show</summary>\n{table}\n</details>" for table in tables]
    parts += [*tables, *map(picture_html, section.figures)]
    if section.pictures:
        kind = "pictures pixels" if section.pixels else "pictures"
        inside = "\n".join(map(picture_html, section.pictures))
        parts.append(f'<div class="{kind}">\n{inside}\n</div>')
    inside = "\n".join(parts)
    return f"<section>\n<h2>{html.escape(section.title)}</h2>\n{inside}\n</section>"


def table_html(caption: str, table: pd.DataFrame) -> str:
    """Return a table in a box that scrolls sideways where it is too wide; "-" for what does not exist."""
    head = "".join(f'<th scope="col">{html.escape(str(name))}</th>' for name in table.columns)
    rows = [
        "<tr>" + "".join(f"<td>{html.escape(text_of(value))}</td>" for value in row) + "</tr>"
        for row in table.itertuples(index=False)
    ]
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    body = "\n".join(rows)
    return (
        f'<div class="wide">\n<table>\n{title}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table>\n</div>"
    )


def text_of(value: object) -> str:
    """Return a cell: fractions with two digits, "-" for what does not exist."""
    import pandas as pd

    if pd.isna(value):
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def picture_html(picture: Picture) -> str:
    """Return a picture with its caption, its bytes in the page."""
    data, caption = base64.b64encode(picture.data).decode(), html.escape(picture.caption)
    return (
        f'<figure><img src="data:image/{picture.kind};base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
