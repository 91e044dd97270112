"""A folder of photos through a bundle, as fast as this machine can: values and statistics.

    python samples/batch_folder.py bundles/rooms photos/ --out predictions

Photos are decoded, inferred and written at the same time; a bad one is named, and the rest goes on.
"""

import argparse
import sys
from pathlib import Path

from simo_runtime import Predictor, SimoError
from simo_runtime.cpus import available_cpus
from simo_runtime.pipeline import Pipeline
from simo_runtime.sinks import Forms, Lines
from simo_runtime.sources import find


def main() -> None:
    """Write 16-bit depth and 8-bit classes for every photo, and one file of statistics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("photos")
    parser.add_argument("--out", type=Path, default=Path("predictions"))
    given = parser.parse_args()
    sinks = [Forms(given.out, ("png",)), Lines(given.out / "statistics.jsonl")]
    done = bad = 0
    try:
        # One thread a pass and a pass a CPU: nothing waits for anything.
        with Predictor.open(given.bundle, threads=1) as predict:
            pipeline = Pipeline(predict, sinks=sinks, lanes=available_cpus(), reduced=True)
            for outcome in pipeline.run(find([given.photos])):
                done += 1
                if outcome.error is not None:
                    bad += 1
                    print(f"Error: {outcome.error}")
    finally:
        for sink in sinks:
            sink.close()
    print(f"{done} photos, {bad} of them bad: {given.out}")


if __name__ == "__main__":
    try:
        main()
    except SimoError as error:
        sys.exit(f"Error: {error}")
