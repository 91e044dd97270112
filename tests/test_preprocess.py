"""What a network sees in use is what it saw in training, whatever kind of file comes in."""

import json
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest

from simo_build.data import load_split
from simo_build.progress import Silent
from simo_runtime import Predictor
from simo_runtime.image import Decoded, read_image, read_reduced
from simo_runtime.metrics import metric_named
from tests.photos import jpeg_with_exif, png_with_exif, tiff
from tests.scenes import Plain, plain
from tests.test_data import loaded

MEAN = (0.2, 0.4, 0.6)  # of `loaded`
DRAW = np.random.default_rng(3)
PHOTO: Any = cv2.resize(DRAW.integers(0, 256, (9, 13, 3), np.uint8), (67, 45))


def encoded(suffix: str, pixels: Any) -> bytes:
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return data.tobytes()


def turned(data: bytes) -> bytes:
    """Say that a JPEG lies on its side (EXIF orientation 6)."""
    return data[:2] + jpeg_with_exif(PHOTO, tiff(6))[2:]


FILES = {
    "odd.jpg": encoded(".jpg", PHOTO),
    "odd.png": encoded(".png", PHOTO),
    "grey.jpg": encoded(".jpg", PHOTO[..., 0]),
    "grey.png": encoded(".png", PHOTO[..., 0]),
    "alpha.png": encoded(".png", np.dstack([PHOTO, PHOTO[..., 1]])),
    "deep.png": encoded(".png", PHOTO.astype(np.uint16) * 257),
    "deepgrey.png": encoded(".png", PHOTO[..., 0].astype(np.uint16) * 257),
    "turned.jpg": jpeg_with_exif(PHOTO, tiff(6)),
    "turned.png": png_with_exif(PHOTO, tiff(8)),
    "dot.png": encoded(".png", PHOTO[:1, :1]),
    "line.png": encoded(".png", PHOTO[:1]),
}


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [(24, 32), (33, 17), (100, 120)])
def test_a_file_becomes_the_same_pixels_as_in_training(
    tmp_path: Path, name: str, fit: Literal["stretch", "letterbox"], size: tuple[int, int]
) -> None:
    (tmp_path / "rgb").mkdir()
    path = tmp_path / "rgb" / f"0001{Path(name).suffix}"
    path.write_bytes(FILES[name])
    splits = {"splits": {"train": [1], "select": [], "test": []}}
    (tmp_path / "meta.json").write_text(json.dumps(splits))
    recipe = loaded(tmp_path, fit=fit, size=size)
    trained = load_split(recipe, "train", tasks=[], progress=Silent()).images[0]
    predict = plain(image_size=size, fit=fit, mean=MEAN)
    prepared = predict.prepare(path)
    np.testing.assert_array_equal(prepared.network, trained)
    assert prepared.place.source == read_image(path).shape[:2]


@pytest.mark.parametrize("name", FILES)
def test_predictions_come_back_at_the_size_of_the_upright_photo(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name])
    high, wide = read_image(path).shape[:2]
    assert ((high, wide) == (67, 45)) is name.startswith("turned")
    for fit in ("stretch", "letterbox"):
        scene = plain(fit=fit)(path)
        assert scene["seg"].values.shape == (high, wide)
        assert scene["depth"].values.shape == (high, wide)
        assert scene["normals"].values.shape == (high, wide, 3)


def test_an_array_in_either_order_of_colours_is_its_file(tmp_path: Path) -> None:
    path = tmp_path / "odd.png"
    path.write_bytes(FILES["odd.png"])
    predict = plain()
    expected = predict.prepare(path).network
    bgr = predict.prepare(PHOTO, colours="BGR").network
    rgb = predict.prepare(np.ascontiguousarray(PHOTO[..., ::-1]), colours="RGB").network
    view = predict.prepare(PHOTO[..., ::-1], colours="RGB").network
    for one in (bgr, rgb, view):
        np.testing.assert_array_equal(one, expected)


def test_a_photo_of_the_networks_size_goes_in_and_out_untouched() -> None:
    seen = []
    predict = plain(Plain(seen.append))
    photo = DRAW.integers(0, 256, (24, 32, 3), np.uint8)
    scene = predict(photo, colours="RGB")
    np.testing.assert_array_equal(seen[0][0], photo)
    np.testing.assert_array_equal(scene["depth"].values, photo[..., 0])
    np.testing.assert_array_equal(scene["seg"].values, photo[..., 1] > 127)


# Large photos, decoded at a reduced scale.


def write_large(path: Path, size: tuple[int, int], *, smooth: int = 16) -> Path:
    high, wide = size
    small = DRAW.integers(0, 256, (max(1, high // smooth), max(1, wide // smooth), 3), np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, (wide, high), interpolation=cv2.INTER_CUBIC))
    return path


@pytest.mark.parametrize(
    ("size", "target", "reduced"),
    [
        ((960, 1280), (120, 160), (480, 640)),
        ((1280, 960), (120, 160), (640, 480)),  # on its side: the longer side stands for both
        ((2560, 2560), (120, 160), (320, 320)),
        ((1280, 1280), (120, 160), (320, 320)),
        ((640, 640), (120, 160), (320, 320)),
        ((638, 640), (120, 160), (638, 640)),  # not enough rows for the half
        ((962, 1282), (120, 160), (481, 641)),
        ((961, 1280), (120, 160), (961, 1280)),  # odd: rows would move by half of one
    ],
)
def test_the_scale_leaves_twice_what_the_network_needs(
    tmp_path: Path, size: tuple[int, int], target: tuple[int, int], reduced: tuple[int, int]
) -> None:
    found = read_reduced(write_large(tmp_path / "a.jpg", size), target)
    assert found.pixels.shape[:2] == reduced
    assert found.size == size


def test_only_a_jpeg_is_reduced(tmp_path: Path) -> None:
    found = read_reduced(write_large(tmp_path / "a.png", (640, 640)), (120, 160))
    assert found.pixels.shape == (640, 640, 3)


def test_a_photo_on_its_side_is_reduced_upright(tmp_path: Path) -> None:
    photo = cv2.imread(str(write_large(tmp_path / "a.jpg", (640, 960))))
    (tmp_path / "b.jpg").write_bytes(jpeg_with_exif(np.asarray(photo, np.uint8), tiff(6)))
    found: Decoded = read_reduced(tmp_path / "b.jpg", (120, 160))
    assert found.size == read_image(tmp_path / "b.jpg").shape[:2] == (960, 640)
    assert found.pixels.shape == (480, 320, 3)


def test_a_reduced_photo_is_drawn_whole(tmp_path: Path) -> None:
    path = write_large(tmp_path / "a.jpg", (320, 640))
    scene = plain()(path, reduced=True)
    assert scene["depth"].values.shape == (320, 640)
    np.testing.assert_array_equal(scene["depth"].image, read_image(path))
    assert scene["seg"].overlay().shape == (320, 640, 3)


def test_reduced_photos_pass_the_gate_of_an_export(rooms_bundle: Path, rooms_data: Path) -> None:
    # 1.2 megapixels made of rooms whose truth is known, with grain and JPEG, as of a camera.
    # The gate of an export lets a metric change by 0.1 %.
    folder, draw = rooms_data / "rooms", np.random.default_rng(0)
    grain = draw.normal(0, 6, (960, 1280, 3)).astype(np.float32)
    with Predictor.open(rooms_bundle) as predict:
        specs = predict.specs(["seg", "depth"])
        sums = {
            (spec.name, reduced): metric_named(spec.metric).start(spec.channels)
            for spec in specs
            for reduced in (False, True)
        }
        for number in range(1, 41):
            small = read_image(folder / "rgb" / f"{number:04d}.jpg")[..., ::-1]
            large = cv2.resize(small, (1280, 960), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(rooms_data / "large.jpg"), cv2.add(large, grain, dtype=cv2.CV_8U))
            label = cv2.imread(str(folder / "label" / f"{number:04d}.png"), cv2.IMREAD_UNCHANGED)
            depth = cv2.imread(str(folder / "depth" / f"{number:04d}.png"), cv2.IMREAD_UNCHANGED)
            truths: dict[str, Any] = {"seg": label, "depth": np.float32(depth) / 1000}
            for reduced in (False, True):
                prepared = predict.prepare(rooms_data / "large.jpg", reduced=reduced)
                assert callable(prepared.photo) is reduced  # it was decoded at the half
                outputs = predict.infer([prepared], specs)
                for name, truth in truths.items():
                    sums[name, reduced].update(outputs[name], truth[None])
    for spec in specs:
        whole, less = sums[spec.name, False].result(), sums[spec.name, True].result()
        assert abs(less - whole) <= 0.001 * abs(whole), (spec.name, whole, less)
