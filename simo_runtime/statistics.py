"""What a prediction says in numbers, for JSON: a few for each kind of values."""

from typing import Any

import numpy as np

from simo_runtime.predictor import Prediction

PERCENTILES = (1, 25, 50, 75, 99)


def statistics(prediction: Prediction) -> dict[str, Any]:
    """Give kind, unit and, of classes, the share of each that is seen, 0 to 1; of single values,
    percentiles and mean; of vectors and colours, the mean of every component.

    Pixels that are no numbers are left out, and `known` is the share of the others.
    """
    values, task = prediction.values, prediction.task
    found: dict[str, Any] = {"kind": task.kind, "unit": prediction.unit}
    if task.labels:
        counts = np.bincount(values.ravel(), minlength=len(task.labels))
        shares = {n: int(c) / values.size for n, c in zip(task.labels, counts, strict=False) if c}
        return {**found, "shares": shares}
    if values.ndim == 3:
        known = np.isfinite(values).all(axis=-1)
        mean = values[known].mean(axis=0) if known.any() else np.zeros(0)
        return {**found, "known": float(known.mean()), "mean": [float(one) for one in mean]}
    finite = values[np.isfinite(values)]
    found["known"] = finite.size / values.size
    if finite.size:
        found["mean"] = float(finite.mean())
        marks = np.percentile(finite, PERCENTILES)
        found |= {f"p{at:02d}": float(m) for at, m in zip(PERCENTILES, marks, strict=True)}
    return found
