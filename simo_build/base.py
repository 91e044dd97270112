"""The base: the encoder that all experts were fine-tuned from."""

from simo_build.checkpoints import METADATA, claim, finite, image_size, read_tensors
from simo_build.encoder import Encoder, adapt, randomise
from simo_build.loading import LoadedRecipe
from simo_build.statedict import state_hash


def load_base(loaded: LoadedRecipe, encoder: Encoder) -> str:
    """Give the encoder the base's weights; returns their hash.

    The base is a file of ours, of timm's or of DINOv2's, or `random(seed)`.
    """
    seed = loaded.recipe.random_seed
    if seed is not None:
        randomise(encoder, seed)
        return state_hash(encoder.weights())
    path = loaded.locate(loaded.recipe.base)
    tensors, metadata = read_tensors(path)
    size = None
    if METADATA in metadata:
        tensors = claim(tensors, source=path)["encoder."]
        size = image_size(metadata, path)
    state = adapt(finite(tensors, source=path), encoder, source=str(path), image_size=size)
    encoder.load(state, source=str(path))
    return state_hash(encoder.weights())
