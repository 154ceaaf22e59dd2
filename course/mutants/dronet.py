"""DroNet with its own weights: the network, its twin and its mutants."""

import functools
from collections.abc import Callable
from pathlib import Path

from course.mutants.base import Mutant, Network, Probe, enter
from course.mutants.building import ported
from course.mutants.tools import another_forward, before, exchange, exchange_tensors, halves, like, norms, put, reset
from course.scenes import scenes
from keras_model import resnet8
from parity import load_keras_weights, read_mapping
from parity.padding import Conv2dSame
from torch_model import ResNet8

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

_COURSE = Path(__file__).parents[1]


def _probes() -> tuple[Probe, ...]:
    probes = []
    for number, (height, width) in enumerate(((200, 200), (224, 208), (207, 218))):
        model = resnet8(width, height, 1, 1)
        load_keras_weights(model, _COURSE / "weights" / "dronet_scenes.h5")
        images, *_ = scenes(2, seed=number + 3, height=height, width=width)
        probes.append(Probe(model, [np.asarray(images, dtype=np.float32)]))
    return tuple(probes)


@functools.cache
def network() -> Network:
    """Return DroNet with the weights that it was trained to for this course; it is built once."""
    mapping = read_mapping(_COURSE.parent / "keras_torch_mapping.csv")
    return ported("dronet", _probes(), ResNet8(), mapping)._replace(within=5e-6)


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "dronet")


# --- Kernels and biases ---------------------------------------------------------------------------------------------


@mutant("conv1: height and width of the kernel exchanged", {"conv2d_1"}, "height and width exchanged")
def _(twin):
    put(twin.conv1.weight, twin.conv1.weight.transpose(2, 3))


@mutant("block2.conv2: in and out of the kernel exchanged", {"conv2d_6"}, "kernel axes permuted")
def _(twin):
    put(twin.block2.conv2.weight, twin.block2.conv2.weight.transpose(0, 1))


@mutant("block1.downsample: kernel reshaped, not transposed", {"conv2d_4"}, "kernel axes permuted")
def _(twin):
    weight = twin.block1.downsample.weight
    put(weight, weight.permute(2, 3, 1, 0).contiguous())


@mutant("block3.conv1: kernel reshaped, not transposed", {"conv2d_8"}, "kernel axes permuted")
def _(twin):
    weight = twin.block3.conv1.weight
    put(weight, weight.permute(2, 3, 1, 0).contiguous())


@mutant("block1.conv1: one kernel of 32 flipped", {"conv2d_2"}, "kernel flipped")
def _(twin):
    weight = twin.block1.conv1.weight
    put(weight[11], weight[11].flip(1, 2))


@mutant("block1: weights of conv1 and conv2 exchanged", {"conv2d_2"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.block1.conv1, twin.block1.conv2)


@mutant("block2.bn2 and block3.bn1 exchanged", {"batch_normalization_4"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.block2.bn2, twin.block3.bn1)


@mutant("block3.conv2: initial values left", {"conv2d_9"}, "weights hold other numbers")
def _(twin):
    reset(twin.block3.conv2)


@mutant("block3.downsample: bias missing", {"conv2d_10"}, "bias missing")
def _(twin):
    put(twin.block3.downsample.bias, 0.0)


@mutant("block1.conv2: bias of one channel missing", {"conv2d_3"}, "bias missing")
def _(twin):
    bias = twin.block1.conv2.bias
    put(bias[bias.abs().argmax()], 0.0)


@mutant("block1.conv2: kernel through float16", {"conv2d_3"}, "precision")
def _(twin):
    halves(twin.block1.conv2, "weight")


@mutant("all weights through float16", {"conv2d_1"}, "precision")
def _(twin):
    for module in twin.modules():
        halves(module, *(name for name, _ in module.named_parameters(recurse=False)))


# --- Normalization --------------------------------------------------------------------------------------------------


@mutant("block1.bn1: eps left at 1e-5", {"batch_normalization_1"}, "epsilon")
def _(twin):
    twin.block1.bn1.eps = 1e-5


@mutant("block3.bn2: eps left at 1e-5", {"batch_normalization_6"}, "epsilon")
def _(twin):
    twin.block3.bn2.eps = 1e-5


@mutant("every BatchNorm: eps left at 1e-5", {"batch_normalization_1"}, "epsilon")
def _(twin):
    for norm in norms(twin):
        norm.eps = 1e-5


@mutant("block2.bn2: scale and offset exchanged", {"batch_normalization_4"}, "BatchNormalization vectors exchanged")
def _(twin):
    exchange(twin.block2.bn2.weight, twin.block2.bn2.bias)


@mutant("block3.bn2: mean and variance exchanged", {"batch_normalization_6"}, "BatchNormalization vectors exchanged")
def _(twin):
    exchange(twin.block3.bn2.running_mean, twin.block3.bn2.running_var)


@mutant("block3.bn1: statistics left at 0 and 1", {"batch_normalization_5"}, "statistics left at 0 and 1")
def _(twin):
    twin.block3.bn1.reset_running_stats()


@mutant("block1.bn2: variance left at 1", {"batch_normalization_2"}, "statistics left at 0 and 1")
def _(twin):
    put(twin.block1.bn2.running_var, 1.0)


@mutant("every BatchNorm: statistics left at 0 and 1", {"batch_normalization_1"}, "statistics left at 0 and 1")
def _(twin):
    for norm in norms(twin):
        norm.reset_running_stats()


@mutant("eval() forgotten", {"batch_normalization_1"}, "train mode")
def _(twin):
    twin.train()


@mutant("block2.bn1: in train mode", {"batch_normalization_3"}, "train mode")
def _(twin):
    twin.block2.bn1.train()


@mutant("dropout by F.dropout, which is always on", {"dropout_1"}, "train mode", in_forward=True)
def _(twin):
    another_forward(twin.dropout, lambda self, x: F.dropout(x, self.p))


# --- Padding and geometry -------------------------------------------------------------------------------------------


@mutant("conv1: padding=2", {"conv2d_1"}, "padding")
def _(twin):
    twin.conv1 = like(twin.conv1, nn.Conv2d, padding=2)


@mutant("block1.conv1: padding=1", {"conv2d_2"}, "padding", shows="other size")
def _(twin):
    twin.block1.conv1 = like(twin.block1.conv1, nn.Conv2d, padding=1)


@mutant("block2.conv1: padding=1", {"conv2d_5"}, "padding", shows="other size")
def _(twin):
    twin.block2.conv1 = like(twin.block2.conv1, nn.Conv2d, padding=1)


@mutant("every 3 x 3 convolution: padding=1", {"conv2d_2", "conv2d_5"}, "padding", shows="other size")
def _(twin):
    for block in (twin.block1, twin.block2, twin.block3):
        block.conv1 = like(block.conv1, nn.Conv2d, padding=1)
        block.conv2 = like(block.conv2, nn.Conv2d, padding=1)


@mutant("maxpool: ceil_mode=True", {"max_pooling2d_1"}, "padding")
def _(twin):
    twin.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)


@mutant("maxpool: dilation 2, padding 1", {"max_pooling2d_1"}, "stride or dilation")
def _(twin):
    twin.maxpool = nn.MaxPool2d(3, stride=2, padding=1, dilation=2)


@mutant("block2: conv2 has the stride of conv1", {"conv2d_5"}, "stride or dilation")
def _(twin):
    twin.block2.conv1 = like(twin.block2.conv1, Conv2dSame, stride=1)
    twin.block2.conv2 = like(twin.block2.conv2, Conv2dSame, stride=2)


@mutant("block3.downsample: average of 2 x 2, then stride 1", {"conv2d_10"}, "stride or dilation", in_forward=True)
def _(twin):
    conv = twin.block3.downsample
    twin.block3.downsample = like(conv, nn.Conv2d, stride=1)
    before(twin.block3.downsample, lambda x: F.avg_pool2d(x, 2, ceil_mode=True))


# --- Activations, skips, heads --------------------------------------------------------------------------------------


@mutant(
    "block1: ReLU in place on what the shortcut reads",
    {"conv2d_4", "activation_1"},
    "overwritten in place",
    in_forward=True,
)
def _(twin):
    def forward(self, x):
        main = self.bn1(x)
        x.relu_()
        main = self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(main)))))
        return self.downsample(x) + main

    another_forward(twin.block1, forward)


@mutant("block2: the shortcut reads the activation", {"conv2d_7"}, "another skip", in_forward=True)
def _(twin):
    def forward(self, x):
        x = torch.relu(self.bn1(x))
        return self.downsample(x) + self.conv2(torch.relu(self.bn2(self.conv1(x))))

    another_forward(twin.block2, forward)


@mutant("block3: ReLU after bn1 missing", {"activation_5", "conv2d_8"}, "activation missing", in_forward=True)
def _(twin):
    def forward(self, x):
        return self.downsample(x) + self.conv2(torch.relu(self.bn2(self.conv1(self.bn1(x)))))

    another_forward(twin.block3, forward)


@mutant("block2: ELU in place of the first ReLU", {"activation_3", "conv2d_5"}, "another activation", in_forward=True)
def _(twin):
    def forward(self, x):
        return self.downsample(x) + self.conv2(torch.relu(self.bn2(self.conv1(F.elu(self.bn1(x))))))

    another_forward(twin.block2, forward)


def dronet_forward(twin: nn.Module, flatten: Callable, head: Callable) -> None:
    """Give DroNet's twin another end: ``flatten`` takes what the blocks made, ``head`` the twin and the features."""

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.maxpool(self.conv1(x)))))
        return head(self, self.dropout(flatten(x)))

    another_forward(twin, forward)


def channels_last_relu(x: Tensor) -> Tensor:
    """Flatten as DroNet's twin does."""
    return torch.relu(x.permute(0, 2, 3, 1).flatten(1))


# The same numbers in another order: the first to read them by their place are the Dense layers.
@mutant("flattened channels first", {"flatten_1", "dense_1", "dense_2"}, "flatten order", in_forward=True)
def _(twin):
    dronet_forward(
        twin, lambda x: torch.relu(x.flatten(1)), lambda self, x: (self.steer(x), torch.sigmoid(self.coll(x)))
    )


@mutant("steer: the kernel's rows channels first", {"dense_1"}, "flatten order")
def _(twin):
    put(twin.steer.weight, twin.steer.weight.unflatten(1, (7, 7, 128)).permute(0, 3, 1, 2).contiguous())


@mutant("ReLU before the heads missing", {"activation_7", "dropout_1"}, "activation missing", in_forward=True)
def _(twin):
    dronet_forward(
        twin,
        lambda x: x.permute(0, 2, 3, 1).flatten(1),
        lambda self, x: (self.steer(x), torch.sigmoid(self.coll(x))),
    )


@mutant("sigmoid missing", {"activation_8"}, "activation missing", in_forward=True)
def _(twin):
    dronet_forward(twin, channels_last_relu, lambda self, x: (self.steer(x), self.coll(x)))


@mutant("steering through tanh", {"dense_1"}, "another activation", in_forward=True)
def _(twin):
    dronet_forward(twin, channels_last_relu, lambda self, x: (torch.tanh(self.steer(x)), torch.sigmoid(self.coll(x))))


@mutant("weights of the heads exchanged", {"dense_1", "dense_2"}, "heads exchanged")
def _(twin):
    twin.steer, twin.coll = twin.coll, twin.steer


@mutant("outputs in the other order", {"dense_1", "dense_2", "activation_8"}, "heads exchanged", in_forward=True)
def _(twin):
    dronet_forward(twin, channels_last_relu, lambda self, x: (torch.sigmoid(self.coll(x)), self.steer(x)))


# --- Input ----------------------------------------------------------------------------------------------------------


@mutant("images divided by 255 twice", {"input_1", "conv2d_1"}, "input scaled", in_forward=True)
def _(twin):
    before(twin, lambda x: x / 255)


@mutant("images in [-1, 1]", {"input_1", "conv2d_1"}, "input scaled", in_forward=True)
def _(twin):
    before(twin, lambda x: 2 * x - 1)


@mutant("height and width of the images exchanged", {"input_1", "conv2d_1"}, "input axes exchanged", in_forward=True)
def _(twin):
    before(twin, lambda x: x.transpose(2, 3))


# --- Only in training -----------------------------------------------------------------------------------------------


@mutant("block1.bn2: momentum left at 0.1", {"batch_normalization_2"}, "momentum", shows="training")
def _(twin):
    twin.block1.bn2.momentum = 0.1


@mutant("every BatchNorm: Keras's momentum copied", {"batch_normalization_1"}, "momentum", shows="training")
def _(twin):
    for norm in norms(twin):
        norm.momentum = 0.99


@mutant("dropout: rate 0.2", {"dropout_1"}, "dropout rate", shows="training")
def _(twin):
    twin.dropout.p = 0.2


@mutant(
    "block2: the shortcut is detached", {"conv2d_7", "add_1"}, "gradient stopped", shows="training", in_forward=True
)
def _(twin):
    original = type(twin.block2.downsample).forward
    another_forward(twin.block2.downsample, lambda self, x: original(self, x.detach()))


@mutant("block3.conv1: frozen", {"conv2d_8"}, "layer frozen", shows="training")
def _(twin):
    twin.block3.conv1.requires_grad_(False)


@mutant("block1.bn1: offset frozen", {"batch_normalization_1"}, "layer frozen", shows="training")
def _(twin):
    twin.block1.bn1.bias.requires_grad_(False)
