"""The files of a bundle's graphs, and what they take on the disk."""

import onnx

from simo_runtime.bundle import Bundle


def locations(model: onnx.ModelProto) -> set[str]:
    """Name the files in which a graph's weights lie."""
    return {
        entry.value
        for one in model.graph.initializer
        for entry in one.external_data
        if entry.key == "location"
    }


def disk_bytes(bundle: Bundle, precision: str) -> int:
    """Add up the graphs of one precision and the files that their weights lie in."""
    names = set(bundle.manifest.graph_files(precision).named().values())
    for name in list(names):
        names |= locations(onnx.load(bundle.root / name, load_external_data=False))
    return sum(bundle.manifest.files[name].bytes for name in names)
