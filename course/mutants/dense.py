"""Dense layers one after another: the network, its twin and its mutants."""

import functools

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, small_network
from course.mutants.tools import another_forward, exchange_tensors, put, reset

import keras
import torch.nn.functional as F
from torch import Tensor, nn


def _keras_model() -> keras.Model:
    start = keras_input(8)
    x = keras_layer("Dense", 8, activation="relu", name="dense_a")(start)
    x = keras_layer("Dense", 8, activation="tanh", name="dense_b")(x)
    x = keras_layer("Dense", 8, name="dense_c")(x)
    x = keras_layer("PReLU", name="slopes")(x)
    x = keras_layer("LayerNormalization", epsilon=1e-6, name="layer_norm")(x)
    x = keras_layer("Dropout", 0.4, name="dropout")(x)
    x = keras_layer("Dense", 8, use_bias=False, name="dense_d")(x)
    x = keras_layer("BatchNormalization", scale=False, name="norm")(x)
    x = keras_layer("Dense", 5, activation="softmax", name="head")(x)
    return keras.Model(start, x, name="dense")


def dense_twin() -> nn.Module:
    """Return the twin of the dense network, a Sequential."""
    return nn.Sequential(
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.PReLU(8),
        nn.LayerNorm(8, eps=1e-6),
        nn.Dropout(0.4),
        nn.Linear(8, 8, bias=False),
        nn.BatchNorm1d(8, eps=1e-3, momentum=0.01),
        nn.Linear(8, 5),
        nn.Softmax(dim=-1),
    )


_MODULES = {
    "dense_a": "0",
    "dense_b": "2",
    "dense_c": "4",
    "slopes": "5",
    "layer_norm": "6",
    "dense_d": "8",
    "norm": "9",
    "head": "10",
}


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    return small_network(_keras_model, [(3,), (2,)], dense_twin(), _MODULES)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "dense")


@mutant("0: ReLU missing", {"dense_a"}, "activation missing")
def _(twin):
    twin[1] = nn.Identity()


@mutant("0 and 2 exchanged", {"dense_a"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin[0], twin[2])


@mutant("2: not transposed", {"dense_b"}, "kernel not transposed")
def _(twin):
    put(twin[2].weight, twin[2].weight.T)


@mutant("2: sigmoid in place of tanh", {"dense_b"}, "another activation")
def _(twin):
    twin[3] = nn.Sigmoid()


@mutant("4: bias of one unit missing", {"dense_c"}, "bias missing")
def _(twin):
    put(twin[4].bias[3], 0.0)


@mutant("5: initial slopes left", {"slopes"}, "weights hold other numbers")
def _(twin):
    put(twin[5].weight, 0.25)


@mutant("5: slopes unused, a ReLU", {"slopes"}, "another activation", in_forward=True)
def _(twin):
    another_forward(twin[5], lambda self, x: F.relu(x))


@mutant("6: eps 1e-3, Keras's default", {"layer_norm"}, "epsilon")
def _(twin):
    twin[6].eps = 1e-3


@mutant("7: dropout in train mode", {"dropout"}, "train mode")
def _(twin):
    twin[7].train()


@mutant("8: a bias that Keras has not, with initial values", {"dense_d"}, "weights hold other numbers")
def _(twin):
    linear = nn.Linear(8, 8).double()
    reset(linear)
    put(linear.weight, twin[8].weight.detach())
    twin[8] = linear


@mutant("8: not transposed", {"dense_d"}, "kernel not transposed")
def _(twin):
    put(twin[8].weight, twin[8].weight.T)


@mutant("9: vectors in order, as if it had a scale", {"norm"}, "BatchNormalization vectors exchanged")
def _(twin):
    vectors = [twin[9].bias.detach(), twin[9].running_mean, twin[9].running_var]
    for tensor, vector in zip(
        (twin[9].weight, twin[9].bias, twin[9].running_mean), map(Tensor.clone, vectors), strict=True
    ):
        put(tensor, vector)
    put(twin[9].running_var, 1.0)


@mutant("11: softmax missing", {"head"}, "activation missing")
def _(twin):
    twin[11] = nn.Identity()


@mutant("11: softmax over the batch", {"head"}, "axis")
def _(twin):
    twin[11].dim = 0


@mutant("7: rate of keeping in place of dropping", {"dropout"}, "dropout rate", shows="training")
def _(twin):
    twin[7].p = 0.6


@mutant("7: dropout missing", {"dropout"}, "dropout rate", shows="training")
def _(twin):
    twin[7] = nn.Identity()


@mutant("4: frozen", {"dense_c"}, "layer frozen", shows="training")
def _(twin):
    twin[4].requires_grad_(False)
