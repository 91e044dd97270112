"""A benchmark as one HTML file with plots, tables and where the numbers come from."""

import base64
import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from simo_bench.drawing import stages_figure, tasks_figure, throughput_figure
from simo_bench.setup import ARMS
from simo_bench.tables import table
from simo_build.page import Page, Table, columns_of, to_html

Document = Mapping[str, Any]

PLOTS = (
    (
        "Latency against the number of tasks",
        tasks_figure,
        "Medians of one image. The dashed line is one model per task divided by the ideal ratio, "
        "which is counted from the operations and bytes of every layer.",
    ),
    (
        "Where the time of a photo goes",
        stages_figure,
        "From the file to arrays of the photo's size; stages are timed one by one. The second bar "
        "repeats the encoder for every task and shares all else.",
    ),
    (
        "Throughput against batch",
        throughput_figure,
        "Images a second with the answers of all tasks; bars are 95 % intervals of the median.",
    ),
)
MORE = """
.plot { background: #fff; border-radius: 10px; padding: 12px; max-width: 860px; }
.plot img { display: block; width: 100%; }
pre { overflow-x: auto; background: var(--tint); border-radius: 10px; padding: 14px 16px;
  font-size: 12.5px; line-height: 1.45; }
"""


def write_page(documents: Sequence[Document], path: Path) -> None:
    """Write the page of one or more documents, whole or not at all."""
    text = to_html(page_of(documents[0]))
    plots = "\n".join(_plots(one) for one in documents)
    told = "\n".join(f"<pre>{html.escape(table(one))}</pre>" for one in documents)
    text = text.replace("</style>", f"{MORE}</style>", 1).replace(
        "</header>", f"</header>\n{plots}", 1
    )
    text = text.replace("</main>", f"<section><h2>As text</h2>{told}</section>\n</main>", 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def page_of(document: Document) -> Page:
    """Give the tables of the page."""
    found, bundle, settings = document["found"], document["bundle"], document["settings"]
    figures = [
        (f"{one['median']:.2f} x", f"as fast as {ARMS[one['above']]} ({one['low']:.2f} to "
         f"{one['high']:.2f}){', UNSTABLE' if one['unstable'] else ''}")
        for one in found["ratios"]
        if one["below"] == "joint"
    ]  # fmt: skip
    figures += [
        (f"{one['share']['roofline']:.0%}", "of the ideal ratio "
         f"{one['ideal']['roofline']:.2f} reached, {one['below']} against {one['above']}")
        for one in found["ratios"][:1]
        if "share" in one
    ]  # fmt: skip
    if found["memory"] and "joint" in found["memory"]["ratio"]:
        figures.append((f"{found['memory']['ratio']['joint']:.2f} x", "less resident memory"))
    high, wide = bundle["image_size"]
    machine = document["machine"]
    return Page(
        title=f"{bundle['name']}: what one shared encoder gains",
        lead=f"{', '.join(bundle['tasks'])}; {high} x {wide} pixels, {settings['precision']}, "
        f"{settings['backend']}, {settings['threads']} threads, "
        f"{machine['gpu']['name'] if machine['gpu'] else machine['cpu']}. Per-task models: "
        f"{settings['singles']}."
        + (" UNSTABLE: see the end of the page." if found["unstable"] else ""),
        figures=tuple(figures),
        tables=(_arms(found), _ratios(found), _origin(document)),
    )


def _arms(found: Mapping[str, Any]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in (one for one in ARMS if one in found["arms"]):
        arm, ms = found["arms"][name], found["arms"][name]["ms"]
        if ms is None:
            rows.append((ARMS[name], "no latency", "", "", "", arm["reason"]))
            continue
        cells = ["-" if ms[key] is None else f"{ms[key]:.2f}" for key in ("p50", "p90", "p99")]
        rows.append((ARMS[name], *cells, str(ms["count"]), "; ".join(arm["unstable"])))
    return Table(
        title="Latency of one image, milliseconds",
        head=("", "median", "p90", "p99", "samples", "unstable"),
        rows=columns_of(rows),
    )


def _ratios(found: Mapping[str, Any]) -> Table:
    rows = []
    for one in found["ratios"]:
        best = one.get("ideal")
        rows.append(
            (
                f"{one['below']} against {one['above']}",
                f"{one['median']:.3f}",
                f"{one['low']:.3f} to {one['high']:.3f}",
                f"{best['roofline']:.3f}" if best else "",
                f"{one['share']['roofline']:.1%}" if best else "",
                f"{one['share']['operations']:.1%}" if best else "",
            )
        )
    return Table(
        title="Times as fast",
        note="Median of ratios formed round by round, and its 95 % bootstrap interval over "
        "processes and rounds.",
        head=("", "ratio", "interval", "ideal", "reached", "of operations alone"),
        rows=columns_of(rows),
    )


def _origin(document: Document) -> Table:
    rows = [(key, str(document[key])) for key in ("who", "when", "command", "commit")]
    rows += [(key, json.dumps(document[key])) for key in ("versions", "machine", "settings")]
    rows += [("for steadier clocks", one) for one in document["steadier"]]
    return Table(
        title="Where these numbers come from",
        head=("", ""),
        rows=columns_of(rows),
        words=True,
    )


def _plots(document: Document) -> str:
    found = document["found"]
    there = (
        all("sequential" in row["ms"] for row in found["counts"]),
        bool(found["stages"]),
        any(found["throughput"].values()),
    )
    parts = []
    for (title, draw, note), drawn in zip(PLOTS, there, strict=True):
        if drawn:
            parts.append(
                f"<section>\n<h2>{title}</h2><p>{note}</p>\n"
                f'<div class="plot"><img alt="{title}" src="{_svg(draw(document))}"></div>\n'
                "</section>"
            )
    return "\n".join(parts)


def _svg(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"
