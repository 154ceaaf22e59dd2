"""Train DroNet on synthetic road scenes and write ``course/weights/dronet_scenes.h5``.

The file has the layout of the official weight file, which Keras 2 wrote and Keras 3 reads: one group for each layer,
named in the order of the model. A run takes about a quarter of an hour on two processor cores.
"""

import argparse
import math
import os
import sys
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

# Training needs no reproducible kernels, for which ``course`` turns oneDNN off, and is 2.5 times as fast with oneDNN.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

from course.scenes import scenes
from keras_model import resnet8

import keras  # isort: skip  after course, which settles the backend

BATCH_SIZE = 32
LABEL_SMOOTHING = 0.03
"""Keeps the logits of the collision moderate: the best one is 4.2 for a collision and -4.2 for none."""

STEERING_WEIGHT = 4
"""Weight of the steering's loss: its squared errors are so small that the L2 penalty would otherwise outweigh them."""

DROPOUT = 0.1
"""Less than DroNet's 0.5, whose noise would be larger than the errors of the steering that training is to remove."""

LARGEST_SHIFT = 4
"""Largest shift of a batch in training, in pixels: the camera turned or tilted a little, which changes no truth."""

STEERING_TARGET = 0.10
COLLISION_TARGET = 0.95
FRESH_SCENES = 1000
FIRST_TRAINING_SEED = 1_000_000
"""Training draws its scenes from this seed on, so that smaller seeds give scenes that no network has been shown."""


def _shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, height, width, _ = images.shape
    top, left = rng.integers(0, 2 * LARGEST_SHIFT + 1, 2)
    both = (LARGEST_SHIFT, LARGEST_SHIFT)
    padded = np.pad(images, ((0, 0), both, both, (0, 0)), mode="edge")
    return padded[:, top : top + height, left : left + width]


def train(epochs: int, number: int, seed: int) -> keras.Model:
    """Train a network with DroNet's two losses: squared error of the steering and cross-entropy of the collision.

    Args:
        epochs: Number of passes over the scenes.
        number: Number of scenes.
        seed: Seed of the initial weights, the scenes, their order, their shifts and the dropout.

    Returns:
        The trained network, for images of shape (batch, 200, 200, 1) with values in [0, 1].
    """
    images, steering, collision = scenes(number, FIRST_TRAINING_SEED + seed)
    keras.utils.set_random_seed(seed)
    model = resnet8(200, 200, 1, 1)
    model.get_layer("dropout_1").rate = DROPOUT
    steps = math.ceil(number / BATCH_SIZE)
    # The rate starts at zero because each head adds 6272 features, so full steps at once would move its output far.
    # It ends near zero so that the running statistics of batch normalization settle on the final weights.
    warmup = epochs * steps // 40
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, epochs * steps - warmup, alpha=0.005, warmup_target=1e-3, warmup_steps=warmup
    )
    model.compile(
        optimizer=keras.optimizers.Adam(rate),
        loss=[keras.losses.MeanSquaredError(), keras.losses.BinaryCrossentropy(label_smoothing=LABEL_SMOOTHING)],
        loss_weights=[STEERING_WEIGHT, 1],
        jit_compile=False,  # on a processor, XLA takes half as long again
    )
    rng = np.random.default_rng(seed)
    with tqdm(total=epochs * steps, unit="step") as bar:
        for _ in range(epochs):
            for batch in np.array_split(rng.permutation(number), steps):
                losses = model.train_on_batch(_shifted(images[batch], rng), [steering[batch], collision[batch]])
                bar.set_postfix(steering=f"{losses[1]:.4f}", collision=f"{losses[2]:.4f}", refresh=False)
                bar.update()
    return model


def evaluate(model: keras.Model, seed: int) -> tuple[float, float]:
    """Measure a network on scenes that it has not been trained on.

    Args:
        model: Network for images of shape (batch, 200, 200, 1).
        seed: Seed of the scenes, below ``FIRST_TRAINING_SEED``.

    Returns:
        The root of the mean squared error of the steering, and the share of the scenes whose collision is right.
    """
    images, steering, collision = scenes(FRESH_SCENES, seed)
    predicted_steering, probability = (output[:, 0] for output in model.predict(images, verbose=0))
    error = float(np.sqrt(np.mean((predicted_steering - steering) ** 2)))
    return error, float(np.mean((probability > 0.5) == (collision == 1)))


def save(model: keras.Model, path: Path) -> None:
    """Write a network's weights in the layout of Keras 2. The same weights give the same bytes.

    Args:
        model: The network.
        path: The file to write; one that exists is replaced, and only once the new one is complete.
    """
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with h5py.File(unfinished, "w") as file:
            file.attrs["backend"] = keras.backend.backend()
            file.attrs["keras_version"] = keras.__version__
            file.attrs["layer_names"] = np.array([layer.name.encode() for layer in model.layers])
            for layer in model.layers:
                group = file.create_group(layer.name)
                # Keras 2 named a tensor after its layer and its place among the outputs of the operation: ":0".
                tensors = {f"{layer.name}/{weight.name}:0": weight.numpy() for weight in layer.weights}
                group.attrs["weight_names"] = np.array([name.encode() for name in tensors])
                for name, tensor in tensors.items():
                    group.create_dataset(name, data=tensor)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < FIRST_TRAINING_SEED:
        raise argparse.ArgumentTypeError(f"must be at least 0 and below {FIRST_TRAINING_SEED}")
    return value


def main() -> int:
    """Train, measure and write a network; return 1, and write nothing, if it misses its targets."""
    parser = argparse.ArgumentParser(
        description="Train DroNet on synthetic road scenes and write its weights.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=_count, default=12, metavar="N", help="passes over the scenes")
    parser.add_argument("--scenes", type=_count, default=10_000, metavar="N", help="scenes to train on")
    parser.add_argument("--seed", type=_seed, default=0, metavar="N", help="seed of everything random")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_name("dronet_scenes.h5"), metavar="H5", help="file to write"
    )
    arguments = parser.parse_args()
    if not arguments.out.parent.is_dir():
        parser.error(f"no such folder: {arguments.out.parent}")

    model = train(arguments.epochs, arguments.scenes, arguments.seed)
    error, accuracy = evaluate(model, arguments.seed)
    print(f"on {FRESH_SCENES} fresh scenes: steering RMSE {error:.4f}, collision accuracy {accuracy:.1%}")
    if not (error <= STEERING_TARGET and accuracy >= COLLISION_TARGET):  # nor if the error is NaN
        print(
            f"missed: the RMSE must be at most {STEERING_TARGET} and the accuracy at least {COLLISION_TARGET:.0%}; "
            "nothing was written",
            file=sys.stderr,
        )
        return 1
    save(model, arguments.out)
    print(f"wrote {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
