"""Formats of labelled images: FORMATS holds one entry a format.

`nyuv2_npy` and `cityscapes_npy` are MTAN's files, `nyuv2_mat`, `cityscapes` and `taskonomy` what
their makers publish, `folder` is this project's own, `images` a folder of one's own.
"""

from simo_build.formats import cityscapes, folder, images, mtan, nyuv2, taskonomy
from simo_build.formats.dataset import Dataset as Dataset
from simo_build.formats.dataset import Format as Format

MAPS = frozenset(folder.DECODERS)

FORMATS: dict[str, Format] = {
    "folder": Format(open=folder.open_folder, kinds=MAPS, keys=frozenset({"map"})),
    "nyuv2_npy": Format(
        open=mtan.open_nyuv2,
        kinds=frozenset({"segmentation", "depth", "log_depth", "normals"}),
        keys=frozenset({"signs"}),
    ),
    "cityscapes_npy": Format(
        open=mtan.open_cityscapes, kinds=frozenset({"segmentation", "parts", "disparity"})
    ),
    "nyuv2_mat": Format(
        open=nyuv2.open_nyuv2,
        kinds=frozenset({"segmentation", "depth", "log_depth"}),
        keys=frozenset({"map"}),
    ),
    "cityscapes": Format(
        open=cityscapes.open_cityscapes,
        kinds=frozenset(cityscapes.FOLDERS),
        keys=frozenset({"map"}),
    ),
    "taskonomy": Format(
        open=taskonomy.open_taskonomy,
        kinds=MAPS - {"parts", "disparity"},
        keys=frozenset({"signs", "range"}),
    ),
    "images": Format(
        open=images.open_images,
        kinds=MAPS,
        keys=frozenset({"suffix", "scale", "invalid", "range", "signs", "classes"}),
    ),
}
