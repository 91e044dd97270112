"""Edges and keypoints made from images."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from simo_bench.drawn import draw, edges, keypoints
from simo_build.progress import Silent
from simo_runtime.errors import DataError

SIZE = (40, 48)


def corner() -> np.ndarray:
    image = np.zeros((*SIZE, 3), np.uint8)
    image[20:, 24:] = 255
    return image


def test_an_edge_is_strongest_where_the_brightness_steps() -> None:
    found = edges(corner())
    assert found[30].argmax() in (23, 24)  # the step is between both
    assert found[:, 40].argmax() in (19, 20)
    assert found[5, 5] == 0
    # Half the difference of neighbours, which is two weights of the Gaussian, at 0 and at 1.
    assert found[30].max() == pytest.approx((0.3989 + 0.2420) / 2, rel=0.01)


def test_a_keypoint_is_a_blob_or_a_corner_but_no_edge() -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    cv2.circle(image, (24, 20), 3, (255, 255, 255), -1)
    found = keypoints(image)
    assert np.unravel_index(found.argmax(), SIZE) == (20, 24)
    edge = np.zeros((*SIZE, 3), np.uint8)
    edge[:, 24:] = 255
    assert keypoints(edge).max() < 0.01 * found.max()
    assert keypoints(corner()).max() > 0.1 * found.max()
    assert keypoints(255 - image) == pytest.approx(found, abs=1e-5)  # a dark blob is one, too


def written(folder: Path, images: list[np.ndarray]) -> Path:
    (folder / "rgb").mkdir()
    for index, image in enumerate(images):
        assert cv2.imwrite(str(folder / "rgb" / f"{index:04d}.png"), image)
    rest = list(range(1, len(images)))
    (folder / "meta.json").write_text(json.dumps({"splits": {"train": [0], "test": rest}}))
    return folder


def test_every_frame_is_given_both_maps_on_one_scale(tmp_path: Path) -> None:
    faint = corner() // 2
    root = written(tmp_path, [corner(), faint])
    assert draw(root, progress=Silent()) == [root / "edge", root / "keypoint"]
    whole, half = (cv2.imread(str(root / f"edge/000{i}.png"), cv2.IMREAD_UNCHANGED) for i in (0, 1))
    assert whole is not None
    assert half is not None
    assert (whole.dtype, whole.shape, whole.max()) == (np.uint16, SIZE, 65535)
    inside = (whole > 0) & (whole < 65535)
    assert half[inside] == pytest.approx(whole[inside] * (127 / 255), abs=2)
    assert len(list((root / "keypoint").iterdir())) == 2


def test_images_without_any_edge_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="all of one colour"):
        draw(written(tmp_path, [np.full((*SIZE, 3), 7, np.uint8)] * 2), progress=Silent())
