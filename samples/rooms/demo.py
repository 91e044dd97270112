"""The whole line on the sample: draw rooms, build the bundle, predict, and make one picture.

python samples/rooms/demo.py         # or `make demo`; everything goes to demo/
"""

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT))

from samples.rooms.render import write_dataset, write_photos  # noqa: E402  # path set above
from simo_runtime import Predictor, read_image  # noqa: E402

OUT = Path("demo")
PHOTOS, SEED = 3, 5


def main() -> None:
    """Draw, build, predict, and say where everything is."""
    start = time.monotonic()
    command = Path(sys.executable).parent
    say("1. Drawing 128 small rooms with their truth, and three large photos")
    write_dataset(OUT / "data" / "rooms", (120, 160), {"realign": 96, "select": 32}, 0, processes=2)
    write_photos(OUT / "photos", (480, 640), PHOTOS, SEED, processes=2)
    say("2. Building the bundle: simo-build --recipe samples/rooms/rooms.yaml")
    build = [command / "simo-build", "--recipe", HERE / "rooms.yaml", "--data", OUT / "data"]
    build += ["-o", OUT / "bundles" / "rooms"]
    built = subprocess.run(build, check=True, stdout=subprocess.PIPE, text=True)
    bundle = built.stdout.strip()
    say("3. Predicting: simo-infer demo/photos/*.jpg")
    photos = sorted((OUT / "photos").glob("*.jpg"))
    subprocess.run(
        [command / "simo-infer", *photos, "--bundle", bundle, "-o", OUT / "predictions"],
        check=True,
    )
    grid = draw_grid(bundle, photos, OUT / "rooms.jpg")
    say(f"Done in {time.monotonic() - start:.0f} s")
    say(f"  the bundle        {bundle}")
    say(f"  the predictions   {OUT / 'predictions'}")
    say(f"  one picture       {grid}")


def say(line: str) -> None:
    """Tell where we are, on stderr, as commands do."""
    print(line, file=sys.stderr, flush=True)


def draw_grid(bundle: str, photos: list[Path], target: Path) -> Path:
    """Put every photo and its predictions side by side in one picture."""
    rows = []
    with Predictor.open(bundle) as predict:
        for photo in photos:
            predictions = predict(photo)
            cells = [read_image(photo), *(p.colours() for p in predictions.values())]
            rows.append(np.concatenate([cv2.resize(cell, (400, 300)) for cell in cells], axis=1))
    picture = np.concatenate(rows)
    cv2.imwrite(str(target), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    return target


if __name__ == "__main__":
    main()
