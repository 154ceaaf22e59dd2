"""After use_float64 all that either framework makes is float64, whatever was made before."""

import subprocess
import sys

SCRIPT = """
import keras, numpy as np, torch
from parity import compare, run_torch, use_float64
keras.layers.Dense(2)  # after a layer was made, floatx alone changes nothing
use_float64()
image = keras.Input((4, 4, 1))
model = keras.Model(image, keras.layers.Conv2D(2, 3)(image))
assert {image.dtype, *(weight.dtype for weight in model.weights)} == {"float64"}
x = np.random.default_rng(0).normal(size=(2, 4, 4, 1))
expected = model(x)
assert np.asarray(expected).dtype == np.float64
module = torch.nn.Conv2d(1, 2, 3)
assert module.weight.dtype == torch.tensor(0.5).dtype == torch.float64
module.load_state_dict({
    "weight": torch.tensor(model.weights[0].numpy()).permute(3, 2, 0, 1), "bias": torch.tensor(model.weights[1].numpy())
})
assert compare("x", expected, run_torch(module, x))
"""


def test_both_frameworks_compute_in_float64_even_if_a_layer_was_made_before():
    """In a process of its own: the settings hold for all that comes after."""
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("agree ")
