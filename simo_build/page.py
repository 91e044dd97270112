"""A report as a page: tables and pictures in, one HTML file or Markdown out.

All text is escaped here, whatever it came from. The HTML file needs nothing else: pictures are in
it, there are no scripts, and nothing is fetched.
"""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

from simo_build.pictures import Legend, Strip

SPECIAL = re.compile(r"([\\`*\[\]<>|#])")  # what Markdown would take for its own


@dataclass(frozen=True)
class Cell:
    """A cell: its text, a smaller one after it, and a share of 1 to be shown as a bar."""

    text: str
    small: str = ""
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table under a title; the first column says what a row is, all others are numbers."""

    title: str
    note: str = ""
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: int | None = None  # the row that counts
    words: bool = False  # whether the columns hold words, and not numbers


@dataclass(frozen=True, kw_only=True)
class Page:
    """A whole report. `figures` are the few numbers at its top, each with what it is."""

    title: str
    lead: str
    figures: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]
    strips: tuple[Strip, ...] = ()
    pictures_note: str = ""


def to_markdown(page: Page) -> str:
    """Write the page as Markdown, with its tables; the pictures are in the HTML file."""
    parts = [f"# {plain(page.title)}", plain(page.lead)]
    parts += ["\n".join(f"- {plain(figure)} {plain(what)}" for figure, what in page.figures)]
    parts += [_markdown_table(table) for table in page.tables]
    if page.strips:
        parts.append("Pictures of input, truth and predictions are in `report.html`.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    sides = [":---" if table.words or not column else "---:" for column in range(len(table.head))]
    lines = [list(map(plain, table.head)), sides]
    for number, row in enumerate(table.rows):
        cells = [plain(cell.text + (f" ({cell.small})" if cell.small else "")) for cell in row]
        lines.append([f"**{c}**" if number == table.strong and c else c for c in cells])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    note = f"{plain(table.note)}\n\n" if table.note else ""
    return f"## {plain(table.title)}\n\n{note}{text}"


def plain(text: str) -> str:
    """Escape what Markdown, or HTML in it, would take for its own; one line stays one line."""
    return SPECIAL.sub(r"\\\1", " ".join(text.split()))


def to_html(page: Page) -> str:
    """Write the page as one HTML file."""
    first, rest = page.tables[:1], page.tables[1:]
    figures = "".join(
        f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(figure)}</dd></div>"
        for figure, what in page.figures
    )
    body = [
        f"<header><h1>{html.escape(page.title)}</h1><p>{html.escape(page.lead)}</p>"
        f"<dl>{figures}</dl></header>",
        *map(_html_table, first),
        _html_pictures(page),
        *map(_html_table, rest),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{html.escape(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{chr(10).join(filter(None, body))}\n</main>\n</body>\n</html>\n"
    )


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in table.head)
    rows = []
    for number, row in enumerate(table.rows):
        strong = ' class="strong"' if number == table.strong else ""
        first = f'<th scope="row">{_inside(row[0])}</th>'
        rows.append(
            f"<tr{strong}>{first}{''.join(f'<td>{_inside(cell)}</td>' for cell in row[1:])}</tr>"
        )
    note = f"<p>{html.escape(table.note)}</p>" if table.note else ""
    words = ' class="words"' if table.words else ""
    return (
        f"<section>\n<h2>{html.escape(table.title)}</h2>{note}\n"
        f'<div class="wide"><table{words}>\n<thead><tr>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>\n</section>"
    )


def _inside(cell: Cell) -> str:
    text = html.escape(cell.text)
    if cell.small:
        text += f" <small>{html.escape(cell.small)}</small>"
    if cell.share is not None:
        width = 100 * min(1.0, max(0.0, cell.share))
        text += f'<span class="bar"><i style="width:{width:.1f}%"></i></span>'
    return text


def _html_pictures(page: Page) -> str:
    if not page.strips:
        return ""
    note = f"<p>{html.escape(page.pictures_note)}</p>" if page.pictures_note else ""
    return (
        f"<section>\n<h2>Pictures</h2>{note}\n" + "\n".join(map(_html_strip, page.strips))
    ) + "\n</section>"


def _html_strip(strip: Strip) -> str:
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in strip.columns)
    rows = []
    for number, row in enumerate(strip.rows, start=1):
        named = zip(strip.columns, row, strict=True)
        rows.append(
            "<tr>" + "".join(_cell(strip.task, n, number, data) for n, data in named) + "</tr>"
        )
    caption = f"<h3>{html.escape(strip.task)}</h3>{_html_legend(strip.legend)}"
    table = f"<thead><tr>{heads}</tr></thead>\n<tbody>{chr(10).join(rows)}</tbody>"
    return (
        f"<figure>\n<figcaption>{caption}</figcaption>\n"
        f'<div class="wide"><table class="pictures">\n{table}</table></div>\n</figure>'
    )


def _cell(task: str, column: str, number: int, data: bytes) -> str:
    told = html.escape(f"{task}: {column}, image {number}")
    return f'<td><img alt="{told}" src="{embedded("jpeg", data)}"></td>'


def _html_legend(legend: Legend) -> str:
    if legend.classes:
        items = "".join(
            f'<li><i style="background:{colour}"></i>{html.escape(name)}</li>'
            for name, colour in legend.classes
        )
        return f'<ul class="classes">{items}</ul>'
    if legend.bar:
        ticks = "".join(f"<span>{html.escape(tick)}</span>" for tick in legend.ticks)
        bar = embedded("png", legend.bar)
        return f'<div class="scale"><img alt="" src="{bar}"><div>{ticks}</div></div>'
    return f"<p>{html.escape(legend.line)}</p>" if legend.line else ""


def embedded(form: str, data: bytes) -> str:
    """Give a picture as an address that holds it."""
    return f"data:image/{form};base64,{base64.b64encode(data).decode()}"


def cells(*texts: str) -> tuple[Cell, ...]:
    """Make the cells of a row that has nothing but text."""
    return tuple(Cell(text) for text in texts)


def columns_of(rows: Sequence[Sequence[str]]) -> tuple[tuple[Cell, ...], ...]:
    """Make rows of cells that have nothing but text."""
    return tuple(cells(*row) for row in rows)


STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dfe3e8; --paper: #fff; --tint: #f3f6fa;
  --accent: #2f6fb0; --bar: #d6e0ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e8ee; --soft: #9aa6b5; --line: #303844; --paper: #14181e; --tint: #1c232c;
    --accent: #6aa9e6; --bar: #2d3743; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -.01em; }
h2 { font-size: 19px; margin: 48px 0 6px; letter-spacing: -.005em; }
h3 { font-size: 15px; margin: 0; }
p { margin: 0 0 12px; color: var(--soft); max-width: 76ch; }
header p { font-size: 16px; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 24px 0 0; }
dl div { background: var(--tint); border-radius: 10px; padding: 14px 16px;
  display: flex; flex-direction: column-reverse; justify-content: flex-end; }
dt { color: var(--soft); font-size: 13px; line-height: 1.35; }
dd { margin: 0; font-size: 25px; font-weight: 650; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 0 7px 20px; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; vertical-align: bottom; }
tbody th { font-weight: 500; }
table.words td, table.words th { text-align: left; }
table.words th:first-child { width: 170px; }
table.words td { overflow-wrap: anywhere; font-size: 13px;
  font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
tr.strong th, tr.strong td { font-weight: 650; background: var(--tint); }
tr.strong th { box-shadow: -8px 0 0 var(--tint); }
tr.strong td:last-child { box-shadow: 8px 0 0 var(--tint); }
small { color: var(--soft); font-size: 12.5px; font-weight: 400; }
.bar { display: block; height: 4px; margin-top: 4px; border-radius: 2px; background: var(--bar); }
.bar i { display: block; height: 100%; border-radius: 2px; background: var(--accent); }
figure { margin: 24px 0 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 6px 24px; align-items: center;
  margin-bottom: 6px; }
figcaption p { margin: 0; font-size: 13px; }
.pictures { table-layout: fixed; min-width: 640px; }
.pictures th, .pictures td, .pictures th:first-child { padding: 0 3px 6px; border: 0;
  text-align: center; }
.pictures img { display: block; width: 100%; border-radius: 4px; }
.classes { display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 0; padding: 0; list-style: none;
  font-size: 13px; color: var(--soft); }
.classes i { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 6px; }
.scale { width: 240px; font-size: 12.5px; color: var(--soft); }
.scale img { display: block; width: 100%; height: 10px; border-radius: 3px; }
.scale div { display: flex; justify-content: space-between; }
@media print {
  :root { --ink: #000; --soft: #444; --line: #ccc; --paper: #fff; --tint: #f2f2f2;
    --accent: #2f6fb0; --bar: #ddd; }
  * { -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  body { font-size: 11px; }
  main { max-width: none; padding: 0; }
  .wide { overflow: visible; }
  .pictures { min-width: 0; }
  small, thead th, dt, .classes, .scale, figcaption p, table.words td { font-size: 9.5px; }
  header p, h3 { font-size: 12px; }
  h2 { margin-top: 28px; font-size: 15px; }
  h2, p, figcaption { break-after: avoid; }
  p, tr, figure, .wide, dl div { break-inside: avoid; }
}
"""
