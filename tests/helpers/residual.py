"""A network with a skip, and many ways to write its twin; and all that a trace must leave as it was."""

import random

from tests.helpers.models import Twin, model_of, norm, snapshot, x_of

import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import nn
from torch.utils.checkpoint import checkpoint


def state(model, twin):
    """Return all that a trace must not change, of both models and of the process."""
    modules = [
        (sorted(vars(m)), m.training, *map(len, (m._forward_hooks, m._forward_pre_hooks))) for m in twin.modules()
    ]
    tensors = [
        (id(t), t.requires_grad, vars(t), None if t.grad is None else t.grad.tolist())
        for t in twin.state_dict(keep_vars=True).values()
    ]
    layers = [
        (id(getattr(layer, "activation", None)), len(layer._losses), layer.trainable, len(layer._inbound_nodes))
        for layer in model._flatten_layers()
    ]
    draws = [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]  # noqa: NPY002  the global state is meant
    seeds = [variable.numpy().tolist() for variable in model.non_trainable_variables]
    return snapshot(model), snapshot(twin), modules, tensors, layers, draws, seeds, torch.is_grad_enabled()


def residual(x):
    x = L.Conv2D(4, 3, padding="same", activation="relu", name="first")(x)
    y = L.Conv2D(4, 3, padding="same", name="second")(L.ReLU(name="relu")(L.BatchNormalization(name="norm")(x)))
    x = L.GlobalAveragePooling2D(name="pool")(L.Add(name="add")([x, y]))
    return L.Dense(2, activation="sigmoid", name="out")(x)


NAMES = ("first", "norm", "second", "out")


X = x_of(3, 8, 8, 3)


def residual_model():
    return model_of((8, 8, 3), residual)


def residual_twin(run, **more):
    first, second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    return Twin(run, first=first, norm=norm(4), second=second, out=nn.Linear(4, 2), **more)


def plain(t, x):
    x = F.relu(t.first(x))
    y = t.second(F.relu(t.norm(x)))
    return torch.sigmoid(t.out((x + y).mean((2, 3))))


def by_modules(t, x):
    x = t.act(t.first(x))
    y = t.second(t.act(t.norm(x)))
    return t.gate(t.out(t.flat(t.pool(x + y))))


def by_keyword(t, x):
    x = F.relu(input=t.first(input=x))
    y = t.second(input=torch.relu(input=t.norm(input=x)))
    return t.out(input=torch.add(input=x, other=y).mean(dim=(2, 3))).sigmoid()


def in_place(t, x):
    x = t.act(t.first(x))
    y = t.second(t.act(t.norm(x.clone())))
    y += x
    return t.out(y.mean((2, 3))).sigmoid_()


def asking_for_sizes(t, x):
    first = F.relu(t.first(x))
    assert (x.shape[0], x.dim()) == (x.size(0), 4)
    y = t.second(F.relu(t.norm(first)))
    assert x.numel()
    return {"y": torch.sigmoid(t.out((first + y).mean((2, 3)))), "x": None}


def written_into(t, x):
    padded = torch.zeros(len(x), 3, 10, 10)
    padded[:, :, 1:-1, 1:-1] = x
    x = F.conv2d(padded, t.first.weight, t.first.bias).relu()
    return torch.sigmoid(t.out((x + t.second(F.relu(t.norm(x)))).mean((2, 3))))


def remembering(t, x):
    t.last, t.count = x, t.count + 1
    return plain(t, x * 1.0)


def checkpointed(t, x):
    x = F.relu(t.first(x))
    y = checkpoint(lambda x: t.second(F.relu(t.norm(x))), x, use_reentrant=False)
    return torch.sigmoid(t.out((x + y).mean((2, 3))))


def forgiving(t, x):
    try:
        t.out(x)
    except RuntimeError:
        return plain(t, x)


def with_hooks(twin):
    twin.norm.register_forward_pre_hook(lambda module, x: (x[0] * 1.0,))
    twin.second.register_forward_hook(lambda module, x, y: y * 1.0)
    twin.register_full_backward_hook(lambda *args: None)
    return twin


ROWS = ["first", "first activation", "norm", "relu", "second", "add", "pool", "out", "out activation"]
