"""How well proxies without labels choose, from a study that measured every candidate with labels.

    python -m simo_bench.ranking STUDY.json --json FILE

For every proxy: Spearman's correlation of its scores with equation 1 on the select split, and the
regret of its choice, in points of equation 1 - both with the experts' heads as they are (`merged`)
and after head re-alignment (`realigned`), over all candidates, and within the candidates of each
method. `select`, measuring on the select split itself, stands beside the proxies.
"""

import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import ArrayLike, NDArray

from simo_build.cli import polite
from simo_build.report import write_json
from simo_runtime.errors import DataError

SCHEMA, STUDY = "simo.ranking/1", "simo.study/1"
SELECT = "select"  # the choice with labels, to compare with
KINDS = {"merged": "heads as they are", "realigned": "heads re-aligned"}
Row = Mapping[str, Any]


def ranks(values: ArrayLike) -> NDArray[np.float64]:
    """Rank values from 1; equal ones share the mean of their ranks, NaN is the least."""
    given = np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf)
    _, place, counts = np.unique(given, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place])


def spearman(one: ArrayLike, other: ArrayLike) -> float | None:
    """Give Spearman's rank correlation, or None where one side has no two different values."""
    first, second = ranks(one), ranks(other)
    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def regret(scores: ArrayLike, performance: ArrayLike) -> float:
    """Give how many points of performance the candidate of the highest score is off the best."""
    score = np.nan_to_num(np.asarray(scores, np.float64), nan=-np.inf)
    found = np.nan_to_num(np.asarray(performance, np.float64), nan=0.0)
    return float(100 * (found.max() - found[score.argmax()]))


def rank(study: Mapping[str, Any]) -> dict[str, Any]:
    """Judge every proxy of a study; give the plain values of the report."""
    rows = [row for row in study["candidates"] if "proxies" in row]
    proxies = {}
    for name in (SELECT, *rows[0]["proxies"]):
        judged = {kind: judge([row for row in rows if row[kind]], name, kind) for kind in KINDS}
        proxies[name] = {**judged, "faster": faster(rows, name)}
    return {
        "schema": SCHEMA,
        **{key: study[key] for key in ("recipe", "commit", "versions", "inputs", "machine")},
        "unlabelled": study["unlabelled"],
        "methods": len(groups(rows)),
        "proxies": proxies,
    }


def judge(rows: Sequence[Row], name: str, kind: str) -> dict[str, Any]:
    """Judge one proxy over all candidates, and within methods that have several of them."""
    apart = [group for group in groups(rows).values() if len(group) > 1]
    correlations = [_spearman(group, name, kind) for group in apart]
    return {
        "candidates": len(rows),
        "spearman": _spearman(rows, name, kind),
        "regret": _regret(rows, name, kind) if rows else None,
        "methods": len(apart),
        "spearman_within": mean([value for value in correlations if value is not None]),
        "regret_within": mean([_regret(group, name, kind) for group in apart]),
    }


def groups(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Put the candidates of each method together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    return found


def faster(rows: Sequence[Row], name: str) -> dict[str, float | None]:
    """Give how many times as fast a score is as measuring a candidate, the median of all.

    `merged`: as measuring it on the select split; `realigned`: as re-aligning its heads first.
    """
    ratios: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for row in rows:
        seconds = row["seconds"]
        cost = max(seconds["select"] if name == SELECT else seconds["proxies"][name], 1e-4)
        ratios["merged"].append(seconds["select"] / cost)
        if "realign" in seconds:
            ratios["realigned"].append((seconds["realign"] + seconds["select"]) / cost)
    return {kind: float(np.median(each)) if each else None for kind, each in ratios.items()}


def mean(values: Sequence[float]) -> float | None:
    """Give the mean, or None of nothing."""
    return math.fsum(values) / len(values) if values else None


def _spearman(rows: Sequence[Row], name: str, kind: str) -> float | None:
    return spearman(_scores(rows, name), _performance(rows, kind))


def _regret(rows: Sequence[Row], name: str, kind: str) -> float:
    return regret(_scores(rows, name), _performance(rows, kind))


def _scores(rows: Sequence[Row], name: str) -> list[float]:
    return (
        _performance(rows, "merged") if name == SELECT else [row["proxies"][name] for row in rows]
    )


def _performance(rows: Sequence[Row], kind: str) -> list[float]:
    return [row[kind]["normalised_performance"] for row in rows]


def table(found: Mapping[str, Any]) -> str:
    """Lay the report out as tables in Markdown: one for heads as they are, one for re-aligned."""
    return "\n\n".join(_table(found["proxies"], kind) for kind in KINDS)


def _table(proxies: Mapping[str, Any], kind: str) -> str:
    counts = next(iter(proxies.values()))[kind]
    lines = [
        f"| {KINDS[kind]}: {counts['candidates']} candidates, {counts['methods']} methods "
        "| Spearman | regret | Spearman within | regret within | times as fast |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, each in proxies.items():
        one, points = each[kind], _shown("{:.2f} points")
        cells = [
            _shown("{:+.3f}")(one["spearman"]),
            points(one["regret"]),
            _shown("{:+.3f}")(one["spearman_within"]),
            points(one["regret_within"]),
            _shown("{:.1f}")(each["faster"][kind]),
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(form: str) -> Callable[[float | None], str]:
    return lambda value: "-" if value is None else form.format(value)


def read_study(path: Path) -> dict[str, Any]:
    """Read what `simo_bench.study` wrote; DataError if it is anything else, or has no proxies."""
    try:
        study = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as JSON: {error}") from error
    schema = study.get("schema") if isinstance(study, dict) else None
    if schema != STUDY:
        raise DataError(
            f"{path}: its schema is {schema!r}, not {STUDY!r}; "
            "give the file that `python -m simo_bench.study --json FILE` writes"
        )
    if not any("proxies" in row for row in study["candidates"]):
        raise DataError(f"{path}: no candidate has proxies; run the study again, which adds them")
    return dict(study)


@click.command()
@click.argument("study", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@polite
def main(study: Path, json_file: Path | None) -> None:
    """Say how well the proxies choose, from the JSON of a STUDY."""
    found = rank(read_study(study))
    click.echo(table(found))
    if json_file is not None:
        command = shlex.join(["python", "-m", "simo_bench.ranking", study.name])
        write_json({**found, "command": command}, json_file)


if __name__ == "__main__":
    main()
