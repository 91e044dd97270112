"""A bundle inside a program of yours: one predictor, many threads, errors that say what to do.

python samples/embed_in_your_app.py bundles/rooms photo.jpg
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from simo_runtime import Predictor, SimoError, read_image


class Rooms:
    """What an application might make of it: how far away is what, in metres."""

    def __init__(self, bundle: Path) -> None:
        self._predict = Predictor.open(bundle)  # once: it may be used from any thread

    def distances(self, photo: Path) -> dict[str, float]:
        """Give the median distance of every class in a photo."""
        scene = self._predict(photo, tasks=["seg", "depth"])  # one pass through the encoder
        classes, metres = scene["seg"].values, scene["depth"].values
        return {
            name: round(float(np.median(metres[classes == index])), 2)
            for index, name in enumerate(scene["seg"].labels)
            if (classes == index).any()
        }

    def nearest(self, frame: np.ndarray) -> float:
        """Give the distance of what is nearest in a frame, RGB uint8 (H, W, 3)."""
        depth = self._predict(frame, tasks=["depth"], colours="RGB")["depth"].values
        return float(np.percentile(depth, 1))

    def close(self) -> None:
        """Let go of the models."""
        self._predict.close()


def main() -> None:
    """Ask from four threads at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photo", type=Path)
    given = parser.parse_args()
    rooms = Rooms(given.bundle)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(rooms.distances, [given.photo] * 4))
    assert all(answer == answers[0] for answer in answers)
    for name, metres in answers[0].items():
        print(f"{name:<12}{metres:6.2f} m")
    print(f"{'nearest':<12}{rooms.nearest(read_image(given.photo)):6.2f} m")
    rooms.close()


if __name__ == "__main__":
    try:
        main()
    except SimoError as error:
        sys.exit(f"Error: {error}")
