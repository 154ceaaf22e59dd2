"""Convert DroNet's weights from Keras to PyTorch: ``python convert.py``.

Fills the Keras model from a weight file by layer name, moves the weights into its PyTorch twin, verifies that the two
compute the same, and only then writes the state dict of the twin.
"""

import argparse
import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from course.official_weights import official_weights
from course.scenes import scenes
from keras_model import resnet8, with_logits
from parity import ParityError, compare, header, load_keras_weights, read_mapping, transfer
from parity.axes import torch_input
from torch_model import ResNet8

import keras
import numpy as np
import torch
from tqdm import tqdm

HERE = Path(__file__).parent

# Heights and widths for which the heads' weights fit, odd, even and not square. A wrong padding may be right at one.
SIZES = ((200, 200), (224, 224), (207, 218))


def convert(weights: Path, mapping: Path, out: Path) -> None:
    """Convert a DroNet weight file and write the verified state dict.

    Args:
        weights: Legacy HDF5 weight file of DroNet, for 200 x 200 images with one channel.
        mapping: CSV file that says which Keras weight fills which PyTorch tensor.
        out: The file to write; it is not touched unless the converted model was verified.

    Raises:
        ParityError: If an input is at fault, or the converted model does not compute what the Keras model does.
        OSError: If the file cannot be written.
    """
    if out.exists() and any(out.samefile(source) for source in (weights, mapping) if source.exists()):
        raise ParityError(str(out), ["the output would overwrite an input"])
    if not out.absolute().parent.is_dir():
        raise ParityError(str(out), ["its folder does not exist"])
    with tqdm(total=4, bar_format="{n}/{total} {desc}", file=sys.stderr) as progress:
        progress.set_description_str(f"filling the Keras model from {weights.name} by layer name")
        keras_model = resnet8(200, 200, 1, 1)
        load_keras_weights(keras_model, weights)
        progress.update()
        progress.set_description_str(f"moving the weights as {mapping.name} says")
        torch_model = ResNet8(200, 200, 1, 1).eval()
        transfer(keras_model, torch_model, read_mapping(mapping))
        progress.update()
        progress.set_description_str("verifying")
        expected = references(keras_model)
        with progress.external_write_mode():
            faults = verify(torch_model, expected)
        if faults:
            raise ParityError(f"{out} is not written", faults)
        progress.update()
        progress.set_description_str(f"writing {out.name}")
        save(torch_model, out)
        progress.update()


class Reference(NamedTuple):
    """What the Keras model computes in float64 on some images.

    Attributes:
        images: Shape (batch, height, width, 1), float32, values in [0, 1].
        outputs: Steering and the logit of the collision, each (batch, 1), float64.
    """

    images: np.ndarray
    outputs: list[np.ndarray]


def references(keras_model: keras.Model) -> list[Reference]:
    """Run DroNet in float64 on noise and on scenes, at each of ``SIZES``.

    Args:
        keras_model: DroNet for 200 x 200 images with one channel.
    """
    found = []
    for height, width in SIZES:
        with dtype_policy("float64"):
            referee = resnet8(width, height, 1, 1)
        for layer in referee.layers:
            layer.set_weights(keras_model.get_layer(layer.name).get_weights())
        noise = np.random.default_rng(0).random((4, height, width, 1), dtype=np.float32)
        images = np.concatenate([noise, scenes(4, 0, height, width)[0]])
        found.append(Reference(images, [np.asarray(output) for output in with_logits(referee)(images)]))
    return found


def verify(torch_model: ResNet8, expected: list[Reference]) -> list[str]:
    """Compare the twin with the Keras model's outputs, in float64 and in float32; print the table.

    In float64 a mistake has no rounding to hide in. Collisions are compared before the sigmoid, which would hide a
    large error where it is saturated.

    Args:
        torch_model: The twin, float32, in eval mode. It is not changed.
        expected: What ``references`` returned.

    Returns:
        The names of the comparisons that disagree; empty if the twin is right.
    """
    header()
    faults = []
    exact_model = copy.deepcopy(torch_model).double()
    for images, outputs in expected:
        height, width = images.shape[1:3]
        x = torch_input(images)
        with torch.no_grad():
            twins = {"float64": exact_model(x.double(), logits=True), "float32": torch_model(x, logits=True)}
        for (dtype, heads), relative in zip(twins.items(), (1e-10, 1e-5), strict=True):
            for head, a, b in zip(("steering", "collision logit"), outputs, heads, strict=True):
                name = f"{head}, {height} x {width}, {dtype}"
                scale = max(1.0, 10 ** np.ceil(np.log10(np.abs(a).max())))
                if not compare(name, a, b, within=relative * scale):
                    faults.append(f"{name}: the converted model differs from the Keras model")
    return faults


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Build Keras layers with another dtype policy than the default for a while."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def save(torch_model: ResNet8, out: Path) -> None:
    """Write the state dict and prove that it reads back equal; an error leaves no file, or the one that was there."""
    part = out.with_name(f"{out.name}.part")
    try:
        torch.save(torch_model.state_dict(), part)
        again = torch.load(part, weights_only=True)
        if any(not torch.equal(again[key], value) for key, value in torch_model.state_dict().items()):
            raise ParityError(str(out), ["the file does not read back as it was written"])
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights",
        default=HERE / "course" / "weights" / "dronet_scenes.h5",
        help="Keras weight file (HDF5), or 'official' for the file that DroNet's authors published, which is fetched "
        "(default: the project's own, %(default)s)",
    )
    parser.add_argument("--mapping", type=Path, default=HERE / "keras_torch_mapping.csv", help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("torch_weights.pth"), help="(default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        weights = official_weights() if options.weights == "official" else Path(options.weights)
    except ValueError as error:
        print(f"convert: the official weights: {error}", file=sys.stderr)
        return 1
    try:
        convert(weights, options.mapping, options.out)
    except (ParityError, OSError) as error:
        print(f"convert: {error}", file=sys.stderr)
        return 1
    print(f"{options.out} is written and verified")
    return 0


if __name__ == "__main__":
    sys.exit(main())
