"""How fast a bundle could be on a device, and what one shared encoder could gain at best.

Roofline.  A layer takes the longer one of its operations over the peak and its bytes over the
bandwidth; a graph takes the sum of its layers. The bound beside it supposes that nothing goes to
memory between layers: all operations over the peak, or weights, inputs and outputs over the
bandwidth, whichever is longer.

Ideal ratio.  With E the encoder's time and H a head's: the sum of E + H over the models of the
tasks, over E plus the sum of H. If neither encoder nor heads cost more in one graph than alone, the
measured ratio comes to this.  Memory likewise, with the bytes of weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simo_bench.counting import Count, Layer, count_graph
from simo_bench.devices import Device
from simo_runtime.bundle import Bundle


@dataclass(frozen=True)
class Counted:
    """The counts of a bundle's encoder and heads in one precision."""

    encoder: Count
    heads: Mapping[str, Count]

    def graphs(self) -> dict[str, Count]:
        """Give all of them by name."""
        return {"encoder": self.encoder, **self.heads}


def counted(bundle: Bundle, *, precision: str = "fp32", batch: int = 1) -> Counted:
    """Count the graphs of a bundle."""
    files = bundle.manifest.graph_files(precision)
    return Counted(
        count_graph(bundle.root / files.encoder, batch=batch),
        {task: count_graph(bundle.root / name, batch=batch) for task, name in files.heads.items()},
    )


def layer_ms(layer: Layer, device: Device) -> float:
    """Give the roofline time of a layer in milliseconds."""
    compute = layer.operations / device.peak(layer.bits)
    return 1e3 * max(compute, layer.bytes / device.bandwidth)


def roofline_ms(count: Count, device: Device) -> float:
    """Give the sum over the layers, in milliseconds."""
    return sum(layer_ms(layer, device) for layer in count.layers)


def bound_ms(count: Count, device: Device) -> float:
    """Give what not even a single kernel for the whole graph could beat, in milliseconds."""
    compute = sum(layer.operations / device.peak(layer.bits) for layer in count.layers)
    return 1e3 * max(compute, (count.weights + count.given) / device.bandwidth)


def ideal(encoders: Sequence[float], heads: Sequence[float], shared: float) -> float:
    """Give the sum of E + H of the models over the shared E and the sum of H."""
    return (sum(encoders) + sum(heads)) / (shared + sum(heads))


def described(count: Count, device: Device) -> dict[str, Any]:
    """Give the figures of a graph."""
    return {
        "operations": count.operations,
        "products": count.products,
        "bytes": count.bytes,
        "weights": count.weights,
        "given": count.given,
        "roofline_ms": roofline_ms(count, device),
        "bound_ms": bound_ms(count, device),
    }


def limits(
    shared: Counted, singles: Mapping[str, Counted], tasks: Sequence[str], device: Device
) -> dict[str, Any]:
    """Give the figures of every graph, and the ideal ratios of time and memory.

    `singles` are the models of the tasks, each with an encoder and a head of its own.
    """

    def ratio(of: Any) -> float:
        return ideal(
            [of(singles[task].encoder) for task in tasks],
            [of(singles[task].heads[task]) for task in tasks],
            of(shared.encoder),
        )

    return {
        "device": device.plain(),
        "graphs": {name: described(one, device) for name, one in shared.graphs().items()},
        "ideal": {
            "roofline": ratio(lambda one: roofline_ms(one, device)),
            "operations": ratio(lambda one: one.operations),
            "memory": ratio(lambda one: one.weights),
        },
    }


def limits_table(counts: Counted, device: Device, *, layers: int | None) -> str:
    """Lay out graphs, and the layers that take longest; None shows every layer."""
    lines = [
        f"{device.name}: {device.source}",
        f"peak {device.peak(32) / 1e9:,.0f} GFLOP/s at 32 bits, {device.bandwidth / 1e9:,.1f} GB/s",
        "",
        f"{'graph':<12}{'GFLOP':>9}{'MB moved':>10}{'MB weights':>12}{'roofline':>12}{'bound':>12}",
    ]
    lines.append("-" * len(lines[-1]))
    for name, count in counts.graphs().items():
        lines.append(
            f"{name:<12}{count.operations / 1e9:>9.2f}{count.bytes / 1e6:>10.1f}"
            f"{count.weights / 1e6:>12.2f}{roofline_ms(count, device):>9.3f} ms"
            f"{bound_ms(count, device):>9.3f} ms"
        )
    rows = [
        (layer_ms(layer, device), name, layer)
        for name, count in counts.graphs().items()
        for layer in count.layers
        if layer.operations or layer.bytes
    ]
    if layers is not None:
        rows = sorted(rows, key=lambda row: -row[0])[:layers]
    lines += ["", f"{'layer':<44}{'MFLOP':>10}{'kB moved':>11}{'microseconds':>14}  limited by"]
    lines.append("-" * (len(lines[-1])))
    lines += [_layer_line(name, layer, device) for _, name, layer in rows]
    return "\n".join(lines)


def _layer_line(graph: str, layer: Layer, device: Device) -> str:
    compute = layer.operations / device.peak(layer.bits)
    by = "peak" if compute >= layer.bytes / device.bandwidth else "bandwidth"
    return (
        f"{f'{graph}: {layer.shown}'[:43]:<44}{layer.operations / 1e6:>10.2f}"
        f"{layer.bytes / 1e3:>11.1f}{1e3 * layer_ms(layer, device):>14.1f}  {by}"
    )
