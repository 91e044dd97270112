"""A camera through a bundle: depth, classes and normals beside the picture, as a video.

    python samples/webcam.py bundles/rooms                       # camera 0, until Ctrl-C
    python samples/webcam.py bundles/rooms rtsp://host/live --out door.mp4

Any source of simo-infer will do: a camera, a stream, a video, a folder.
"""

import argparse
import contextlib
import sys
from pathlib import Path

from simo_runtime import Predictor, SimoError
from simo_runtime.pipeline import Pipeline
from simo_runtime.sinks import Video
from simo_runtime.sources import find


def main() -> None:
    """Write overlays until the source ends or somebody presses Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", nargs="?", default="camera:0")
    parser.add_argument("--out", type=Path, default=Path("webcam.mp4"))
    given = parser.parse_args()
    source = find([given.source])
    video = Video(given.out, source.rate)
    try:
        with Predictor.open(given.bundle) as predict, contextlib.suppress(KeyboardInterrupt):
            for outcome in Pipeline(predict, sinks=[video]).run(source):
                if outcome.error is not None:
                    print(f"Error: {outcome.error}")
                    continue
                depth = (outcome.scene or {}).get("depth")
                print(f"{outcome.frame.origin}: {depth.summary() if depth else 'done'}")
    finally:
        for path in video.close():
            print(path)


if __name__ == "__main__":
    try:
        main()
    except SimoError as error:
        sys.exit(f"Error: {error}")
