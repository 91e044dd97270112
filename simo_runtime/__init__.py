"""Run a bundle: one encoder pass, a prediction from every head.

    from simo_runtime import Predictor

    with Predictor.open("bundles/rooms") as predict:
        scene = predict("photo.jpg", tasks=["seg", "depth"])
    scene["depth"].values        # float32 (H, W), metres, at the photo's own size
    scene["seg"].overlay()       # uint8 (H, W, 3), RGB

Names are imported when they are first used, so that commands start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simo_runtime.bundle import Bundle as Bundle
    from simo_runtime.bundle import Manifest as Manifest
    from simo_runtime.errors import BackendError as BackendError
    from simo_runtime.errors import BundleError as BundleError
    from simo_runtime.errors import ImageError as ImageError
    from simo_runtime.errors import SimoError as SimoError
    from simo_runtime.errors import UnknownNameError as UnknownNameError
    from simo_runtime.image import read_image as read_image
    from simo_runtime.predictor import Prediction as Prediction
    from simo_runtime.predictor import Predictor as Predictor
    from simo_runtime.tasks import TaskSpec as TaskSpec

__all__ = [
    "BackendError",
    "Bundle",
    "BundleError",
    "ImageError",
    "Manifest",
    "Prediction",
    "Predictor",
    "SimoError",
    "TaskSpec",
    "UnknownNameError",
    "read_image",
]

_MODULES = {
    "Bundle": "bundle",
    "Manifest": "bundle",
    "Prediction": "predictor",
    "Predictor": "predictor",
    "TaskSpec": "tasks",
    "read_image": "image",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return __all__
