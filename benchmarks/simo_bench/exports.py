"""Our encoder graph against plain exports of the same model, and int8 against float32, on this CPU.

    python -m simo_bench.exports --json FILE

Weights are random and of the real shapes: they serve to measure speed alone. All arms run in ONNX
Runtime, in one process, in random order within every round, with the same threads:

- `ours`: the folded encoder, from raw pixels to its last tap, as a bundle has it;
- `torch`: torch.onnx.export of the same timm model as it stands, from normalised floats;
- `optimum`: optimum's export of transformers' DINOv2 of the same shape, from normalised floats
  (only where optimum-onnx is installed);
- `adapted`: ours, with the paper's map of rank 16 beside every block;
- `int8`: ours, quantised as a bundle's int8 is.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from simo_bench.samples import spread
from simo_bench.turns import alternating
from simo_build.cli import polite
from simo_build.encoder import Encoder, randomise
from simo_build.origin import command_of, origin, write_json
from simo_build.recipe import EncoderPart, ImagePart
from simo_export.fold import PlainEncoder
from simo_export.graph import OPSET, export_graph, save_graph
from simo_export.quantise import quantised
from simo_runtime.cpus import available_cpus
from simo_runtime.errors import BackendError

SCHEMA = "simo.exports/1"
RANK = 16
CALIBRATION = 8
WANTED = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_int8")  # of the processor
FASTER_INT8 = 1.8
COSINE = 0.99


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One graph that is timed: its file, what it takes, and how many nodes it has."""

    path: Path
    given: Mapping[str, NDArray[Any]]
    nodes: int
    optimised: int  # after ONNX Runtime's own fusions
    session: Any

    def run(self) -> Any:
        return self.session.run(None, dict(self.given))


class Plain(nn.Module):
    """The timm model as it stands: normalised floats (B, 3, H, W) -> the last block's tokens."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, image_B3HW: Tensor) -> Tensor:
        tokens: Tensor = self.vit.forward_features(image_B3HW)  # type: ignore[operator]  # timm's
        return tokens


def opened(path: Path, given: Mapping[str, NDArray[Any]], threads: int) -> Arm:
    """Open a graph, and count its nodes before and after ONNX Runtime's fusions."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.optimized_model_filepath = str(path.with_name("optimised.onnx"))
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    return Arm(
        path=path,
        given=given,
        nodes=count(path),
        optimised=count(path.with_name("optimised.onnx")),
        session=session,
    )


def count(path: Path) -> int:
    """Count the nodes of a graph, without constants."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(node.op_type != "Constant" for node in nodes)


def made(model: str, depth: int | None, size: tuple[int, int]) -> Encoder:
    """Make an encoder of random weights, tapped at its end, with its final norm."""
    options = {} if depth is None else {"depth": depth}
    last = depth or 12
    part = EncoderPart(model=model, options=options, taps=(last,), norm=True)
    encoder = Encoder(part, ImagePart(size=size)).eval()
    randomise(encoder, 0)
    with torch.no_grad():
        for name, scale in encoder.vit.named_parameters():
            if name.endswith("gamma"):
                scale.fill_(1.0)  # a trained model's blocks do something
    return encoder


def ours(encoder: Encoder, folder: Path) -> Path:
    """Export the encoder as a bundle has it."""
    plain = PlainEncoder(
        encoder.vit,
        geometry=encoder.geometry,
        taps=encoder.part.taps,
        norm=encoder.part.norm,
        mean=encoder.image.mean,
        std=encoder.image.std,
    )
    pixels = torch.zeros(2, *encoder.image.size, 3, dtype=torch.uint8)
    folder.mkdir()
    save_graph(export_graph(plain, [pixels], inputs=["image"], outputs=["tap"]), folder, "encoder")
    return folder / "encoder.onnx"


def as_torch_does(encoder: Encoder, folder: Path) -> Path:
    """Export the timm model by torch.onnx alone."""
    folder.mkdir()
    example = torch.zeros(2, 3, *encoder.geometry.padded_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(encoder.vit).eval(),
            (example,),
            folder / "model.onnx",
            input_names=["image"],
            output_names=["tap"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    return folder / "model.onnx"


def as_optimum_does(encoder: Encoder, folder: Path) -> Path:
    """Export transformers' DINOv2 of the same shape by optimum; BackendError if it is not there."""
    try:
        from optimum.exporters.onnx import export
        from optimum.exporters.tasks import TasksManager
        from transformers import BitImageProcessor, Dinov2Config, Dinov2Model
    except ImportError as error:
        raise BackendError(f"optimum is left out ({error}): pip install optimum-onnx") from error
    vit, patch = encoder.vit, encoder.geometry.patch[0]
    attention: Any = vit.blocks[0].attn
    config = Dinov2Config(
        hidden_size=vit.embed_dim,
        num_hidden_layers=len(vit.blocks),
        num_attention_heads=attention.num_heads,
        patch_size=patch,
        image_size=518,  # of the published weights
    )
    torch.manual_seed(0)
    model = Dinov2Model(config).eval()
    folder.mkdir()
    BitImageProcessor().save_pretrained(folder)  # optimum looks for one to draw its example
    model.config._name_or_path = str(folder)
    find = TasksManager.get_exporter_config_constructor
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        described = find("onnx", model=model, task="feature-extraction")(model.config)
        export(model, described, folder / "model.onnx", opset=max(17, described.DEFAULT_ONNX_OPSET))
    return folder / "model.onnx"


def pictures(size: tuple[int, int], images: int) -> NDArray[np.uint8]:
    """Draw pictures, (n, H, W, 3): noise that is smooth as photos are, the same every time."""
    draw = np.random.default_rng(0)
    rough = draw.integers(0, 256, (images, 24, 32, 3), dtype=np.uint8)
    return np.stack([cv2.resize(one, size[::-1], interpolation=cv2.INTER_CUBIC) for one in rough])


def floats(encoder: Encoder, pixels_BHW3: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bring pixels to what plain exports take: normalised, (B, 3, H, W), whole patches."""
    image = torch.from_numpy(pixels_BHW3).permute(0, 3, 1, 2).float() / 127.5 - 1
    padded = nn.functional.pad(image, encoder.geometry.pads)
    return np.ascontiguousarray(padded.numpy())


def prepared(
    encoder: Encoder, folder: Path, threads: int, say: Callable[[str], None]
) -> dict[str, Arm]:
    """Export and open every arm that can be had."""
    pixels = pictures(encoder.image.size, CALIBRATION)
    raw, normalised = {"image": pixels[:1]}, floats(encoder, pixels[:1])
    say("exporting ours, torch's, the adapted and int8 ...")
    path = ours(encoder, folder / "ours")
    arms = {"ours": opened(path, raw, threads)}
    plain = as_torch_does(encoder, folder / "torch")
    arms["torch"] = opened(plain, {"image": normalised}, threads)
    try:
        found = as_optimum_does(encoder, folder / "optimum")
        name = onnxruntime.InferenceSession(str(found), providers=["CPUExecutionProvider"])
        arms["optimum"] = opened(found, {name.get_inputs()[0].name: normalised}, threads)
    except BackendError as error:
        say(str(error))
    (folder / "int8").mkdir()
    save_graph(quantised(path, pixels), folder / "int8", "encoder")
    arms["int8"] = opened(folder / "int8" / "encoder.onnx", raw, threads)
    encoder.adapt(("paper", RANK))
    arms["adapted"] = opened(ours(encoder, folder / "adapted"), raw, threads)
    encoder.adapt(None)
    return arms


def measured(
    encoder: Encoder, *, rounds: int, threads: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure everything, and give it in plain values."""
    with tempfile.TemporaryDirectory() as folder:
        arms = prepared(encoder, Path(folder), threads, say)
        samples = alternating({name: arm.run for name, arm in arms.items()}, rounds, say)
        exact, whole = (arms[name].run()[0] for name in ("ours", "int8"))
        same = arms["torch"].run()[0]

    def ratio(one: str, other: str) -> dict[str, float]:
        pairs = zip(samples[one], samples[other], strict=True)
        return vars(spread([a / b for a, b in pairs]))

    about = origin(command_of("python -m simo_bench.exports"))
    about["machine"]["flags"] = flags()
    return {
        "schema": SCHEMA,
        **about,
        "model": encoder.part.model,
        "blocks": len(encoder.vit.blocks),
        "image_size": list(encoder.image.size),
        "threads": threads,
        "rounds": rounds,
        "milliseconds": {name: vars(spread(values)) for name, values in samples.items()},
        "nodes": {name: arm.nodes for name, arm in arms.items()},
        "nodes_optimised": {name: arm.optimised for name, arm in arms.items()},
        "slower_than_ours": {
            name: ratio(name, "ours") for name in arms if name in ("torch", "optimum", "adapted")
        },
        "faster_in_int8": ratio("ours", "int8"),
        "cosine_int8": cosine(exact, whole),
        "cosine_torch": cosine(exact, same),
    }


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    """Give the cosine of two arrays, laid out as vectors."""
    a, b = one.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def flags() -> list[str]:
    """Say which of the instructions that matter this processor has; [] where it is not told."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return []
    said = set(path.read_text(encoding="utf-8", errors="replace").split())
    return [name for name in WANTED if name in said]


def table_of(found: Mapping[str, Any]) -> str:
    """Lay it out for people."""
    size = " x ".join(map(str, found["image_size"]))
    lines = [
        f"{found['model']}, {found['blocks']} blocks, {size}, {found['threads']} threads, "
        f"{found['rounds']} rounds",
        "",
        "| graph | nodes | after fusion | ms, median | 5 % | 95 % |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, one in found["milliseconds"].items():
        lines.append(
            f"| {name} | {found['nodes'][name]} | {found['nodes_optimised'][name]} "
            f"| {one['median']:.1f} | {one['p05']:.1f} | {one['p95']:.1f} |"
        )
    lines.append("")
    for name, one in found["slower_than_ours"].items():
        lines.append(f"{name} takes {between(one)} of our time")
    fast = found["faster_in_int8"]
    reached = fast["median"] >= FASTER_INT8 and found["cosine_int8"] >= COSINE
    lines.append(
        f"int8 is {between(fast)} as fast, cosine {found['cosine_int8']:.5f}: "
        f"{'at' if reached else 'NOT at'} the bar of {FASTER_INT8} and {COSINE}"
    )
    return "\n".join(lines)


def between(one: Mapping[str, float]) -> str:
    """Show a ratio and its spread."""
    return f"{one['median']:.3f} times ({one['p05']:.3f} to {one['p95']:.3f})"


def pair(text: str) -> tuple[int, int]:
    """Read a size, such as 280x378."""
    high, _, wide = text.partition("x")
    if not (high.isdigit() and wide.isdigit() and int(high) and int(wide)):
        raise click.BadParameter(f"{text!r} is not a size; give height x width, as in 280x378")
    return int(high), int(wide)


@click.command()
@click.option("--model", default="vit_base_patch14_dinov2", show_default=True)
@click.option("--size", default="280x378", show_default=True, help="Height x width in pixels.")
@click.option("--blocks", type=click.IntRange(1, 12), help="Fewer blocks, for a quick look.")
@click.option("--rounds", type=click.IntRange(3), default=30, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="[default: all CPUs]")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
@polite
def main(
    model: str,
    size: str,
    blocks: int | None,
    rounds: int,
    threads: int | None,
    json_file: Path | None,
) -> None:
    """Compare our encoder graph with plain exports, and int8 with float32."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # weights are random; nothing is fetched
    encoder = made(model, blocks, pair(size))
    found = measured(
        encoder,
        rounds=rounds,
        threads=threads or available_cpus(),
        say=lambda line: click.echo(line, err=True),
    )
    click.echo(table_of(found))
    if json_file is not None:
        write_json(found, json_file)


if __name__ == "__main__":
    main()
