"""What a user of the wheel does: move a small model's weights, and see that a check finds a wrong one.

``tests/test_packaging.py`` runs this file in an environment that holds the wheel. It is handed a JSON object: ``home``
is the folder that the wheel was installed into, ``absent`` lists the modules that such a user does not have, ``first``
says whether "parity" or "keras" is imported first.
"""

import importlib.util
import json
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

given = json.loads(sys.argv[1])
home, absent = Path(given["home"]), set(given["absent"])


class Finder(PathFinder):
    """Finds modules as Python does, but for what the running environment holds beyond the wheel's dependencies."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Return None for a module that such a user does not have."""
        return None if name.partition(".")[0] in absent else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder

if given["first"] == "keras":
    import h5py  # noqa: F401
    import keras
    import pandas  # noqa: F401
    import torch  # noqa: F401

# These set variables of their own.
before = dict(os.environ) if given["first"] == "keras" else None

import parity  # noqa: E402
from parity import compare, propose_mapping, run_torch, transfer  # noqa: E402

import keras  # noqa: E402
import numpy as np  # noqa: E402
from torch import nn  # noqa: E402

assert before in (None, dict(os.environ)), "parity sets an environment variable"
# It is the wheel that is tried, and nothing of the checkout is at hand.
assert Path(parity.__file__).is_relative_to(home), parity.__file__
for name in ("course", "keras_model", "torch_model", "conftest"):
    assert importlib.util.find_spec(name) is None, f"{name} can be imported beside the wheel"

images = np.random.default_rng(0).normal(size=(2, 9, 8, 3)).astype(np.float32)
keras_model = keras.Sequential(
    [
        keras.Input((9, 8, 3)),
        keras.layers.Conv2D(4, 3, name="conv"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(2, name="dense"),
    ]
)
for weight in keras_model.weights:
    weight.assign(np.random.default_rng(1).uniform(0.5, 2, weight.shape))
layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=1e-3, momentum=0.01), nn.AdaptiveAvgPool2d(1), nn.Flatten()
torch_model = nn.Sequential(*layers, nn.Linear(4, 2)).eval()

proposal = propose_mapping(keras_model, torch_model, images)
transfer(keras_model, torch_model, proposal.mapping)
expected = keras.ops.convert_to_numpy(keras_model(images))
bound = 1e-5 * abs(expected).max()
assert compare("moved", expected, run_torch(torch_model, images), within=bound)
torch_model[-1].bias.data[1] += 1
assert not compare("bias off", expected, run_torch(torch_model, images), within=bound)
assert parity.first_divergence(parity.trace(keras_model, torch_model, images, proposal.mapping)).layer == "dense"
print(parity.__file__)
