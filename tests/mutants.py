"""Single mistakes, each planted in a correct port, with the place and the cause that a good search must name.

A mutant's function takes a correct twin and plants its mistake. None raises an error, and none changes the shape of an
output. Most change the outputs of every probe; what the others need is in ``Mutant.shows``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from parity import transfer
from parity.padding import Conv2dSame, ConvTranspose1dSame, MaxPool2dSame, pad_same

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from twins import NETWORKS, Network, Probe, load_network, run_keras, run_twin

__all__ = ["CAUSES", "MUTANTS", "NETWORKS", "Mutant", "Network", "Probe", "load_network", "run_keras", "run_twin"]

CAUSES = {
    "kernel axes permuted": "01",
    "kernel flipped": "01",
    "height and width exchanged": "01",
    "depthwise order": "01",
    "groups": "01",
    "input axes exchanged": "01",
    "kernel not transposed": "02",
    "epsilon": "03",
    "BatchNormalization vectors exchanged": "03",
    "statistics left at 0 and 1": "03",
    "train mode": "03",
    "momentum": "03",
    "padding": "04",
    "padding value": "04",
    "padding counted": "04",
    "stride or dilation": "04",
    "overwritten in place": "05",
    "activation missing": "05",
    "another activation": "05",
    "another slope": "05",
    "axis": "05",
    "flatten order": "06",
    "weights of another layer": "07",
    "heads exchanged": "07",
    "weights not moved": "07",
    "bias missing": "07",
    "another skip": "07",
    "input scaled": "08",
    "channels reversed": "08",
    "precision": "08",
    "dropout rate": "12",
    "gradient stopped": "12",
    "layer frozen": "12",
}
"""Each cause of a difference, and the number of the notebook that explains it."""

SHOWS = ("always", "other size", "negative inputs", "training")


class Mutant(NamedTuple):
    """One mistake in one network.

    Attributes:
        name: Where and what, in words.
        network: The name of the network.
        plant: Takes a correct twin, which it may change, and returns the twin with the mistake.
        layers: The names of the Keras layers at which the mistake may rightly be located.
        cause: One of ``CAUSES``.
        shows: Where it shows: "always", only at an "other size" than that of the first probe, only with "negative
            inputs", or only in "training".
    """

    name: str
    network: str
    plant: Callable[[nn.Module], nn.Module]
    layers: frozenset[str]
    cause: str
    shows: str

    def accepts(self, layer: str) -> bool:
        """Tell whether a layer is a right place: "conv", "nested/conv", or with words behind it, "conv (call 2)"."""
        return layer.split("/")[-1].split(" ")[0] in self.layers


MUTANTS: list[Mutant] = []


def mutant(network: str, name: str, layers: set[str], cause: str, shows: str = "always") -> Callable:
    """Return a decorator that enters a function, which plants a mistake in the twin that it is given, as a mutant."""

    def enter(change: Callable[[nn.Module], None]) -> Callable[[nn.Module], None]:
        def plant(twin: nn.Module) -> nn.Module:
            known = set(twin.modules())
            change(twin)
            for module in set(twin.modules()) - known:
                module.training = False  # a new module must not be a second mistake
            return twin

        MUTANTS.append(Mutant(name, network, plant, frozenset(layers), cause, shows))
        return change

    return enter


# --- Tools ----------------------------------------------------------------------------------------------------------


def put(tensor: Tensor, value: Tensor | float) -> None:
    """Overwrite a tensor of a twin."""
    with torch.no_grad():
        tensor.copy_(value.clone().reshape(tensor.shape) if isinstance(value, Tensor) else torch.tensor(value))


def exchange(a: Tensor, b: Tensor) -> None:
    """Exchange the values of two tensors."""
    a_before = a.detach().clone()
    put(a, b.detach())
    put(b, a_before)


def exchange_tensors(a: nn.Module, b: nn.Module) -> None:
    """Exchange all values of two modules of one kind."""
    for key, tensor in a.state_dict().items():
        exchange(tensor, b.state_dict()[key])


def reset(module: nn.Module) -> None:
    """Give a module the initial values that PyTorch gives it, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module.reset_parameters()


def like(module: nn.Module, kind: type[nn.Module], **settings: Any) -> nn.Module:
    """Return a convolution of another kind or with other settings that has the tensors of a module."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
    kept = {name: getattr(module, name) for name in names} | {"bias": module.bias is not None}
    made = kind(**(kept | settings)).to(module.weight.dtype)
    made.load_state_dict(module.state_dict())
    return made


def another_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Give a module another forward, as a class of the same name derived from its own."""
    module.__class__ = type(type(module).__name__, (type(module),), {"forward": forward})


def before(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Make a module change its first input before it does what it did."""
    original = type(module).forward
    another_forward(module, lambda self, x, *rest, **named: original(self, change(x), *rest, **named))


def halves(module: nn.Module, *names: str) -> None:
    """Round tensors of a module to float16."""
    for name in names:
        put(getattr(module, name), getattr(module, name).detach().half().to(getattr(module, name).dtype))


def norms(twin: nn.Module) -> list[nn.Module]:
    """Return all BatchNorm modules of a twin."""
    return [module for module in twin.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


# --- DroNet: kernels and biases -------------------------------------------------------------------------------------


@mutant("dronet", "conv1: height and width of the kernel exchanged", {"conv2d_1"}, "height and width exchanged")
def _(twin):
    put(twin.conv1.weight, twin.conv1.weight.transpose(2, 3))


@mutant("dronet", "block2.conv2: in and out of the kernel exchanged", {"conv2d_6"}, "kernel axes permuted")
def _(twin):
    put(twin.block2.conv2.weight, twin.block2.conv2.weight.transpose(0, 1))


@mutant("dronet", "block1.downsample: kernel reshaped, not transposed", {"conv2d_4"}, "kernel axes permuted")
def _(twin):
    weight = twin.block1.downsample.weight
    put(weight, weight.permute(2, 3, 1, 0).contiguous())


@mutant("dronet", "block3.conv1: kernel reshaped, not transposed", {"conv2d_8"}, "kernel axes permuted")
def _(twin):
    weight = twin.block3.conv1.weight
    put(weight, weight.permute(2, 3, 1, 0).contiguous())


@mutant("dronet", "block1.conv1: one kernel of 32 flipped", {"conv2d_2"}, "kernel flipped")
def _(twin):
    weight = twin.block1.conv1.weight
    put(weight[11], weight[11].flip(1, 2))


@mutant("dronet", "block1: weights of conv1 and conv2 exchanged", {"conv2d_2"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.block1.conv1, twin.block1.conv2)


@mutant("dronet", "block2.bn2 and block3.bn1 exchanged", {"batch_normalization_4"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.block2.bn2, twin.block3.bn1)


@mutant("dronet", "block3.conv2: initial values left", {"conv2d_9"}, "weights not moved")
def _(twin):
    reset(twin.block3.conv2)


@mutant("dronet", "block3.downsample: bias missing", {"conv2d_10"}, "bias missing")
def _(twin):
    put(twin.block3.downsample.bias, 0.0)


@mutant("dronet", "block1.conv2: bias of one channel missing", {"conv2d_3"}, "bias missing")
def _(twin):
    bias = twin.block1.conv2.bias
    put(bias[bias.abs().argmax()], 0.0)


@mutant("dronet", "block1.conv2: kernel through float16", {"conv2d_3"}, "precision")
def _(twin):
    halves(twin.block1.conv2, "weight")


@mutant("dronet", "all weights through float16", {"conv2d_1"}, "precision")
def _(twin):
    for module in twin.modules():
        halves(module, *(name for name, _ in module.named_parameters(recurse=False)))


# --- DroNet: normalization ------------------------------------------------------------------------------------------


@mutant("dronet", "block1.bn1: eps left at 1e-5", {"batch_normalization_1"}, "epsilon")
def _(twin):
    twin.block1.bn1.eps = 1e-5


@mutant("dronet", "block3.bn2: eps left at 1e-5", {"batch_normalization_6"}, "epsilon")
def _(twin):
    twin.block3.bn2.eps = 1e-5


@mutant("dronet", "every BatchNorm: eps left at 1e-5", {"batch_normalization_1"}, "epsilon")
def _(twin):
    for norm in norms(twin):
        norm.eps = 1e-5


@mutant(
    "dronet",
    "block2.bn2: scale and offset exchanged",
    {"batch_normalization_4"},
    "BatchNormalization vectors exchanged",
)
def _(twin):
    exchange(twin.block2.bn2.weight, twin.block2.bn2.bias)


@mutant(
    "dronet",
    "block3.bn2: mean and variance exchanged",
    {"batch_normalization_6"},
    "BatchNormalization vectors exchanged",
)
def _(twin):
    exchange(twin.block3.bn2.running_mean, twin.block3.bn2.running_var)


@mutant("dronet", "block3.bn1: statistics left at 0 and 1", {"batch_normalization_5"}, "statistics left at 0 and 1")
def _(twin):
    twin.block3.bn1.reset_running_stats()


@mutant("dronet", "block1.bn2: variance left at 1", {"batch_normalization_2"}, "statistics left at 0 and 1")
def _(twin):
    put(twin.block1.bn2.running_var, 1.0)


@mutant(
    "dronet", "every BatchNorm: statistics left at 0 and 1", {"batch_normalization_1"}, "statistics left at 0 and 1"
)
def _(twin):
    for norm in norms(twin):
        norm.reset_running_stats()


@mutant("dronet", "eval() forgotten", {"batch_normalization_1"}, "train mode")
def _(twin):
    twin.train()


@mutant("dronet", "block2.bn1: in train mode", {"batch_normalization_3"}, "train mode")
def _(twin):
    twin.block2.bn1.train()


@mutant("dronet", "dropout by F.dropout, which is always on", {"dropout_1"}, "train mode")
def _(twin):
    another_forward(twin.dropout, lambda self, x: F.dropout(x, self.p))


# --- DroNet: padding and geometry -----------------------------------------------------------------------------------


@mutant("dronet", "conv1: padding=2", {"conv2d_1"}, "padding")
def _(twin):
    twin.conv1 = like(twin.conv1, nn.Conv2d, padding=2)


@mutant("dronet", "block1.conv1: padding=1", {"conv2d_2"}, "padding", shows="other size")
def _(twin):
    twin.block1.conv1 = like(twin.block1.conv1, nn.Conv2d, padding=1)


@mutant("dronet", "block2.conv1: padding=1", {"conv2d_5"}, "padding", shows="other size")
def _(twin):
    twin.block2.conv1 = like(twin.block2.conv1, nn.Conv2d, padding=1)


@mutant("dronet", "every 3 x 3 convolution: padding=1", {"conv2d_2", "conv2d_5"}, "padding", shows="other size")
def _(twin):
    for block in (twin.block1, twin.block2, twin.block3):
        block.conv1 = like(block.conv1, nn.Conv2d, padding=1)
        block.conv2 = like(block.conv2, nn.Conv2d, padding=1)


@mutant("dronet", "maxpool: ceil_mode=True", {"max_pooling2d_1"}, "padding")
def _(twin):
    twin.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)


@mutant("dronet", "maxpool: dilation 2, padding 1", {"max_pooling2d_1"}, "stride or dilation")
def _(twin):
    twin.maxpool = nn.MaxPool2d(3, stride=2, padding=1, dilation=2)


@mutant("dronet", "block2: conv2 has the stride of conv1", {"conv2d_5"}, "stride or dilation")
def _(twin):
    twin.block2.conv1 = like(twin.block2.conv1, Conv2dSame, stride=1)
    twin.block2.conv2 = like(twin.block2.conv2, Conv2dSame, stride=2)


@mutant("dronet", "block3.downsample: average of 2 x 2, then stride 1", {"conv2d_10"}, "stride or dilation")
def _(twin):
    conv = twin.block3.downsample
    twin.block3.downsample = like(conv, nn.Conv2d, stride=1)
    before(twin.block3.downsample, lambda x: F.avg_pool2d(x, 2, ceil_mode=True))


# --- DroNet: activations, skips, heads ------------------------------------------------------------------------------


@mutant(
    "dronet", "block1: ReLU in place on what the shortcut reads", {"conv2d_4", "activation_1"}, "overwritten in place"
)
def _(twin):
    def forward(self, x):
        main = self.bn1(x)
        x.relu_()
        main = self.conv2(torch.relu(self.bn2(self.conv1(torch.relu(main)))))
        return self.downsample(x) + main

    another_forward(twin.block1, forward)


@mutant("dronet", "block2: the shortcut reads the activation", {"conv2d_7"}, "another skip")
def _(twin):
    def forward(self, x):
        x = torch.relu(self.bn1(x))
        return self.downsample(x) + self.conv2(torch.relu(self.bn2(self.conv1(x))))

    another_forward(twin.block2, forward)


@mutant("dronet", "block3: ReLU after bn1 missing", {"activation_5", "conv2d_8"}, "activation missing")
def _(twin):
    def forward(self, x):
        return self.downsample(x) + self.conv2(torch.relu(self.bn2(self.conv1(self.bn1(x)))))

    another_forward(twin.block3, forward)


@mutant("dronet", "block2: ELU in place of the first ReLU", {"activation_3", "conv2d_5"}, "another activation")
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
@mutant("dronet", "flattened channels first", {"flatten_1", "dense_1", "dense_2"}, "flatten order")
def _(twin):
    dronet_forward(
        twin, lambda x: torch.relu(x.flatten(1)), lambda self, x: (self.steer(x), torch.sigmoid(self.coll(x)))
    )


@mutant("dronet", "steer: the kernel's rows channels first", {"dense_1"}, "flatten order")
def _(twin):
    put(twin.steer.weight, twin.steer.weight.unflatten(1, (7, 7, 128)).permute(0, 3, 1, 2).contiguous())


@mutant("dronet", "ReLU before the heads missing", {"activation_7", "dropout_1"}, "activation missing")
def _(twin):
    dronet_forward(
        twin,
        lambda x: x.permute(0, 2, 3, 1).flatten(1),
        lambda self, x: (self.steer(x), torch.sigmoid(self.coll(x))),
    )


@mutant("dronet", "sigmoid missing", {"activation_8"}, "activation missing")
def _(twin):
    dronet_forward(twin, channels_last_relu, lambda self, x: (self.steer(x), self.coll(x)))


@mutant("dronet", "steering through tanh", {"dense_1"}, "another activation")
def _(twin):
    dronet_forward(twin, channels_last_relu, lambda self, x: (torch.tanh(self.steer(x)), torch.sigmoid(self.coll(x))))


@mutant("dronet", "weights of the heads exchanged", {"dense_1", "dense_2"}, "heads exchanged")
def _(twin):
    twin.steer, twin.coll = twin.coll, twin.steer


@mutant("dronet", "outputs in the other order", {"dense_1", "dense_2", "activation_8"}, "heads exchanged")
def _(twin):
    dronet_forward(twin, channels_last_relu, lambda self, x: (torch.sigmoid(self.coll(x)), self.steer(x)))


# --- DroNet: input --------------------------------------------------------------------------------------------------


@mutant("dronet", "images divided by 255 twice", {"input_1", "conv2d_1"}, "input scaled")
def _(twin):
    before(twin, lambda x: x / 255)


@mutant("dronet", "images in [-1, 1]", {"input_1", "conv2d_1"}, "input scaled")
def _(twin):
    before(twin, lambda x: 2 * x - 1)


@mutant("dronet", "height and width of the images exchanged", {"input_1", "conv2d_1"}, "input axes exchanged")
def _(twin):
    before(twin, lambda x: x.transpose(2, 3))


# --- DroNet: only in training ---------------------------------------------------------------------------------------


@mutant("dronet", "block1.bn2: momentum left at 0.1", {"batch_normalization_2"}, "momentum", shows="training")
def _(twin):
    twin.block1.bn2.momentum = 0.1


@mutant("dronet", "every BatchNorm: Keras's momentum copied", {"batch_normalization_1"}, "momentum", shows="training")
def _(twin):
    for norm in norms(twin):
        norm.momentum = 0.99


@mutant("dronet", "dropout: rate 0.2", {"dropout_1"}, "dropout rate", shows="training")
def _(twin):
    twin.dropout.p = 0.2


@mutant("dronet", "block2: the shortcut is detached", {"conv2d_7", "add_1"}, "gradient stopped", shows="training")
def _(twin):
    original = type(twin.block2.downsample).forward
    another_forward(twin.block2.downsample, lambda self, x: original(self, x.detach()))


@mutant("dronet", "block3.conv1: frozen", {"conv2d_8"}, "layer frozen", shows="training")
def _(twin):
    twin.block3.conv1.requires_grad_(False)


@mutant("dronet", "block1.bn1: offset frozen", {"batch_normalization_1"}, "layer frozen", shows="training")
def _(twin):
    twin.block1.bn1.bias.requires_grad_(False)


# --- Signal: one dimension ------------------------------------------------------------------------------------------


@mutant("signal", "conv: padding=2", {"first"}, "padding", shows="other size")
def _(twin):
    twin.conv = like(twin.conv, nn.Conv1d, padding=2)


@mutant("signal", "causal: in and out of the kernel exchanged", {"causal"}, "kernel axes permuted")
def _(twin):
    put(twin.causal.weight, twin.causal.weight.transpose(0, 1))


@mutant("signal", "causal: padded on both sides", {"causal"}, "padding")
def _(twin):
    before(twin.causal, lambda x: F.pad(x[..., 4:], (2, 2)))


@mutant("signal", "causal: dilation forgotten", {"causal"}, "stride or dilation")
def _(twin):
    twin.causal = like(twin.causal, nn.Conv1d, dilation=1)
    before(twin.causal, lambda x: x[..., 2:])


@mutant("signal", "pool: padding counted", {"pool"}, "padding counted")
def _(twin):
    twin.pool = nn.AvgPool1d(3, 2, padding=1)


@mutant("signal", "pool: padding=1, not counted", {"pool"}, "padding", shows="other size")
def _(twin):
    twin.pool = nn.AvgPool1d(3, 2, padding=1, count_include_pad=False)


@mutant("signal", "ln: eps left at 1e-5", {"layer_norm"}, "epsilon")
def _(twin):
    twin.ln.eps = 1e-5


@mutant("signal", "ln: normalized over time", {"layer_norm"}, "axis")
def _(twin):
    def forward(self, x):
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, correction=0, keepdim=True) + self.eps).sqrt()
        return x * self.weight + self.bias

    another_forward(twin.ln, forward)


@mutant("signal", "grouped: groups take every second channel", {"grouped"}, "groups")
def _(twin):
    before(twin.grouped, lambda x: x.unflatten(1, (3, 2)).transpose(1, 2).flatten(1, 2))


@mutant("signal", "grouped: ELU missing", {"grouped", "up"}, "activation missing")
def _(twin):
    def forward(self, x):
        x = self.pool(self.causal(F.pad(F.relu(self.bn(self.conv(x))), (4, 0))))
        x = self.up(self.grouped(self.ln(x.transpose(1, 2)).transpose(1, 2)))
        return self.head(F.leaky_relu(x, 0.3).mean(2))

    another_forward(twin, forward)


@mutant("signal", "slope of the LeakyReLU left at 0.01", {"leaky", "average"}, "another slope")
def _(twin):
    def forward(self, x):
        x = self.pool(self.causal(F.pad(F.relu(self.bn(self.conv(x))), (4, 0))))
        x = self.up(F.elu(self.grouped(self.ln(x.transpose(1, 2)).transpose(1, 2))))
        return self.head(F.leaky_relu(x).mean(2))

    another_forward(twin, forward)


@mutant("signal", "up: kernel flipped", {"up"}, "kernel flipped")
def _(twin):
    put(twin.up.weight, twin.up.weight.flip(2))


@mutant("signal", "up: padding=1, output_padding=1", {"up"}, "padding")
def _(twin):
    assert isinstance(twin.up, ConvTranspose1dSame)
    twin.up = like(twin.up, nn.ConvTranspose1d, padding=1, output_padding=1)


@mutant("signal", "head: not transposed", {"head"}, "kernel not transposed")
def _(twin):
    put(twin.head.weight, twin.head.weight.T)


@mutant("signal", "bn: Keras's momentum copied", {"norm"}, "momentum", shows="training")
def _(twin):
    twin.bn.momentum = 0.99


# --- Encoder and decoder --------------------------------------------------------------------------------------------


def encoder_forward(
    twin: nn.Module,
    skip: Callable[[Tensor, Tensor], Tensor] = lambda before, after: after,
    join: Callable[[Tensor, Tensor], list[Tensor]] = lambda stem, x: [stem, x],
) -> None:
    """Give the encoder's twin another skip: which tensor it takes, and in which order they are joined."""

    def forward(self, x):
        linear = self.stem(x)
        stem = self.relu(linear)
        x = self.separable(self.slopes(self.depthwise(self.dilated(self.gelu(self.bn(self.down(stem)))))))
        x = self.tanh(self.up(x))
        return self.softmax(self.classes(torch.cat(join(skip(linear, stem), x), 1)))

    another_forward(twin, forward)


@mutant("encoder", "colours in the order blue, green, red", {"input", "stem"}, "channels reversed")
def _(twin):
    before(twin, lambda x: x.flip(1))


@mutant("encoder", "stem: reads blue, green, red", {"stem"}, "channels reversed")
def _(twin):
    put(twin.stem.weight, twin.stem.weight.flip(1))


@mutant("encoder", "stem: reflects at the edges", {"stem"}, "padding value")
def _(twin):
    twin.stem = like(twin.stem, nn.Conv2d, padding=1, padding_mode="reflect")


@mutant("encoder", "stem: kernel through float16", {"stem"}, "precision")
def _(twin):
    halves(twin.stem, "weight")


@mutant("encoder", "down: padding=(1, 2)", {"down"}, "padding")
def _(twin):
    twin.down = like(twin.down, nn.Conv2d, padding=(1, 2))


@mutant("encoder", "gelu: by tanh", {"gelu"}, "another activation")
def _(twin):
    twin.gelu = nn.GELU("tanh")


@mutant("encoder", "dilated: dilation forgotten", {"dilated"}, "stride or dilation")
def _(twin):
    twin.dilated = like(twin.dilated, nn.Conv2d, dilation=1, padding=1)


@mutant("encoder", "depthwise: multiplier before channel", {"depthwise"}, "depthwise order")
def _(twin):
    weight = twin.depthwise.weight
    put(weight, weight.unflatten(0, (6, 2)).transpose(0, 1).flatten(0, 1))


@mutant("encoder", "depthwise: height and width exchanged", {"depthwise"}, "height and width exchanged")
def _(twin):
    put(twin.depthwise.weight, twin.depthwise.weight.transpose(2, 3))


@mutant("encoder", "separable: multiplier before channel", {"separable"}, "depthwise order")
def _(twin):
    weight = twin.separable.depthwise.weight
    put(weight, weight.unflatten(0, (12, 2)).transpose(0, 1).flatten(0, 1))


@mutant("encoder", "slopes: left at 0.25", {"slopes"}, "weights not moved")
def _(twin):
    put(twin.slopes.weight, 0.25)


@mutant("encoder", "slopes: one LeakyReLU for all channels", {"slopes"}, "another slope")
def _(twin):
    slope = twin.slopes.weight.mean().item()
    another_forward(twin.slopes, lambda self, x: F.leaky_relu(x, slope))


@mutant("encoder", "up: in and out of the kernel exchanged", {"up"}, "kernel axes permuted")
def _(twin):
    put(twin.up.weight, twin.up.weight.transpose(0, 1))


@mutant("encoder", "up: padding=1, output_padding=1", {"up"}, "padding")
def _(twin):
    twin.up = like(twin.up, nn.ConvTranspose2d, padding=1, output_padding=1)


@mutant("encoder", "up: sigmoid in place of tanh", {"up"}, "another activation")
def _(twin):
    twin.tanh = nn.Sigmoid()


@mutant("encoder", "skip: joined in the other order", {"skip", "classes"}, "another skip")
def _(twin):
    encoder_forward(twin, join=lambda stem, x: [x, stem])


@mutant("encoder", "skip: taken before the ReLU", {"skip", "classes"}, "another skip")
def _(twin):
    encoder_forward(twin, skip=lambda before, after: before)


@mutant("encoder", "softmax: over the width", {"softmax"}, "axis")
def _(twin):
    twin.softmax.dim = -1


@mutant("encoder", "bn: momentum 0.01, the complement of Keras's default", {"norm"}, "momentum", shows="training")
def _(twin):
    twin.bn.momentum = 0.01


@mutant("encoder", "skip: detached", {"skip", "stem"}, "gradient stopped", shows="training")
def _(twin):
    encoder_forward(twin, skip=lambda before, after: after.detach())


# --- Dense after dense ----------------------------------------------------------------------------------------------


@mutant("dense", "0: ReLU missing", {"dense_a"}, "activation missing")
def _(twin):
    twin[1] = nn.Identity()


@mutant("dense", "0 and 2 exchanged", {"dense_a"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin[0], twin[2])


@mutant("dense", "2: not transposed", {"dense_b"}, "kernel not transposed")
def _(twin):
    put(twin[2].weight, twin[2].weight.T)


@mutant("dense", "2: sigmoid in place of tanh", {"dense_b"}, "another activation")
def _(twin):
    twin[3] = nn.Sigmoid()


@mutant("dense", "4: bias of one unit missing", {"dense_c"}, "bias missing")
def _(twin):
    put(twin[4].bias[3], 0.0)


@mutant("dense", "5: initial slopes left", {"slopes"}, "weights not moved")
def _(twin):
    put(twin[5].weight, 0.25)


@mutant("dense", "5: slopes unused, a ReLU", {"slopes"}, "another activation")
def _(twin):
    another_forward(twin[5], lambda self, x: F.relu(x))


@mutant("dense", "6: eps 1e-3, Keras's default", {"layer_norm"}, "epsilon")
def _(twin):
    twin[6].eps = 1e-3


@mutant("dense", "7: dropout in train mode", {"dropout"}, "train mode")
def _(twin):
    twin[7].train()


@mutant("dense", "8: a bias that Keras has not, with initial values", {"dense_d"}, "weights not moved")
def _(twin):
    linear = nn.Linear(8, 8).double()
    reset(linear)
    put(linear.weight, twin[8].weight.detach())
    twin[8] = linear


@mutant("dense", "8: not transposed", {"dense_d"}, "kernel not transposed")
def _(twin):
    put(twin[8].weight, twin[8].weight.T)


@mutant("dense", "9: vectors in order, as if it had a scale", {"norm"}, "BatchNormalization vectors exchanged")
def _(twin):
    vectors = [twin[9].bias.detach(), twin[9].running_mean, twin[9].running_var]
    for tensor, vector in zip(
        (twin[9].weight, twin[9].bias, twin[9].running_mean), map(Tensor.clone, vectors), strict=True
    ):
        put(tensor, vector)
    put(twin[9].running_var, 1.0)


@mutant("dense", "11: softmax missing", {"head"}, "activation missing")
def _(twin):
    twin[11] = nn.Identity()


@mutant("dense", "11: softmax over the batch", {"head"}, "axis")
def _(twin):
    twin[11].dim = 0


@mutant("dense", "7: rate of keeping in place of dropping", {"dropout"}, "dropout rate", shows="training")
def _(twin):
    twin[7].p = 0.6


@mutant("dense", "7: dropout missing", {"dropout"}, "dropout rate", shows="training")
def _(twin):
    twin[7] = nn.Identity()


@mutant("dense", "4: frozen", {"dense_c"}, "layer frozen", shows="training")
def _(twin):
    twin[4].requires_grad_(False)


# --- Residual, with explicit padding --------------------------------------------------------------------------------


def residual_forward(
    twin: nn.Module,
    pad: Callable[[Tensor], Tensor] = lambda x: F.pad(x, (1, 1, 1, 1)),
    add: Callable[[Tensor, Tensor], Tensor] = torch.add,
    last: Callable[[Tensor], Tensor] = F.silu,
    classes: Callable[[Tensor], Tensor] = lambda x: F.softmax(x, dim=1),
) -> None:
    """Give the residual twin another padding, addition, last activation or softmax."""

    def forward(self, x):
        x = self.pool(pad(self.stem_bn(self.stem(self.stem_pad(x)))))
        y = self.conv2(self.act(self.conv1(torch.relu(self.gn(x)))))
        return classes(self.fc(last(add(x, y)).mean((2, 3))))

    another_forward(twin, forward)


@mutant("residual", "stem_pad: height before width", {"stem_pad"}, "padding")
def _(twin):
    twin.stem_pad = nn.ZeroPad2d((1, 2, 2, 1))


@mutant("residual", "stem: one kernel with height and width flipped", {"stem"}, "kernel flipped")
def _(twin):
    put(twin.stem.weight[2], twin.stem.weight[2].flip(1, 2))


@mutant("residual", "stem_bn: eps 1e-3, Keras's default", {"stem_norm"}, "epsilon")
def _(twin):
    twin.stem_bn.eps = 1e-3


@mutant("residual", "pool: padded with minus infinity", {"pool_pad", "pool"}, "padding value")
def _(twin):
    residual_forward(twin, pad=lambda x: F.pad(x, (1, 1, 1, 1), value=float("-inf")))


@mutant("residual", "gn: two groups", {"group_norm"}, "groups")
def _(twin):
    twin.gn.num_groups = 2


@mutant("residual", "gn: eps left at 1e-5", {"group_norm"}, "epsilon")
def _(twin):
    twin.gn.eps = 1e-5


@mutant("residual", "conv1 and conv2 exchanged", {"block_a"}, "weights of another layer")
def _(twin):
    exchange_tensors(twin.conv1, twin.conv2)


@mutant("residual", "act: slope left at 0.01", {"block_leaky"}, "another slope")
def _(twin):
    twin.act.negative_slope = 0.01


@mutant("residual", "conv2: kernel through float16", {"block_b"}, "precision")
def _(twin):
    halves(twin.conv2, "weight")


@mutant("residual", "the skip is left out", {"add", "last"}, "another skip")
def _(twin):
    residual_forward(twin, add=lambda x, y: y)


@mutant("residual", "the last activation is missing", {"last", "average"}, "activation missing")
def _(twin):
    residual_forward(twin, last=lambda x: x)


@mutant("residual", "ReLU in place of the last SiLU", {"last", "average"}, "another activation")
def _(twin):
    residual_forward(twin, last=F.relu)


@mutant("residual", "fc: bias missing", {"logits"}, "bias missing")
def _(twin):
    put(twin.fc.bias, 0.0)


@mutant("residual", "softmax over the batch", {"classes"}, "axis")
def _(twin):
    residual_forward(twin, classes=lambda x: F.softmax(x, dim=0))


@mutant("residual", "gn: frozen", {"group_norm"}, "layer frozen", shows="training")
def _(twin):
    twin.gn.requires_grad_(False)


@mutant("residual", "the skip is detached", {"add", "pool"}, "gradient stopped", shows="training")
def _(twin):
    residual_forward(twin, add=lambda x, y: x.detach() + y)


# --- Pooling, and a flatten that permutes ---------------------------------------------------------------------------


@mutant("pooling", "largest: padded with zeros", {"largest"}, "padding value", shows="negative inputs")
def _(twin):
    assert isinstance(twin.largest, MaxPool2dSame)
    another_forward(twin.largest, lambda self, x: F.max_pool2d(pad_same(x, (3, 3), (2, 2), (1, 1)), 3, 2))


@mutant("pooling", "largest: padding=1", {"largest"}, "padding", shows="other size")
def _(twin):
    twin.largest = nn.MaxPool2d(3, 2, padding=1)


@mutant("pooling", "conv: the odd element of padding before the data", {"conv"}, "padding")
def _(twin):
    twin.conv = like(twin.conv, nn.Conv2d)
    before(twin.conv, lambda x: F.pad(x, (1, 1, 1, 0)))


@mutant("pooling", "conv: kernel flipped", {"conv"}, "kernel flipped")
def _(twin):
    put(twin.conv.weight, twin.conv.weight.flip(2, 3))


@mutant("pooling", "mean: padding counted", {"mean"}, "padding counted")
def _(twin):
    another_forward(twin.mean, lambda self, x: F.avg_pool2d(pad_same(x, (3, 2), (2, 2), (1, 1)), (3, 2), 2))


def pooling_forward(twin: nn.Module, order: tuple[int, ...] = (0, 2, 3, 1), relu: Callable = torch.relu) -> None:
    """Give the pooling twin another order of axes before its flatten, or another activation."""

    def forward(self, x):
        x = self.flatten(self.mean(self.conv(self.largest(x))).permute(order))
        return self.head(relu(self.hidden(x)))

    another_forward(twin, forward)


@mutant("pooling", "flattened channels first", {"flatten", "hidden"}, "flatten order")
def _(twin):
    pooling_forward(twin, (0, 1, 2, 3))


@mutant("pooling", "flattened by columns", {"flatten", "hidden"}, "flatten order")
def _(twin):
    pooling_forward(twin, (0, 3, 2, 1))


@mutant("pooling", "hidden: the kernel's rows by columns", {"hidden"}, "flatten order")
def _(twin):
    put(twin.hidden.weight, twin.hidden.weight.unflatten(1, (4, 3, 4)).transpose(1, 2).flatten(1))


@mutant("pooling", "hidden: ReLU missing", {"hidden", "head"}, "activation missing")
def _(twin):
    pooling_forward(twin, relu=lambda x: x)


@mutant("pooling", "head: through float16", {"head"}, "precision")
def _(twin):
    halves(twin.head, "weight", "bias")


@mutant("pooling", "height and width of the images exchanged", {"input", "largest"}, "input axes exchanged")
def _(twin):
    before(twin, lambda x: x.transpose(2, 3))


# --- A flatten channels first ---------------------------------------------------------------------------------------


def flat_forward(
    twin: nn.Module,
    start: Callable[[Tensor], Tensor] = lambda x: F.leaky_relu(x, 0.3),
    pad: Callable[[Tensor], Tensor] = lambda x: pad_same(x, (3, 3), (2, 2), (1, 1)),
    sigmoid: Callable[[Tensor], Tensor] = torch.sigmoid,
) -> None:
    """Give the flat twin another activation at its start or before its head, or another padding."""

    def forward(self, x):
        x = self.conv(pad(start(x))).relu()
        x = F.max_pool2d(pad_same(x, (2, 3), (2, 3), (1, 1), float("-inf")), (2, 3))
        return self.fc2(sigmoid(self.fc1(self.bn(x.flatten(1)))))

    another_forward(twin, forward)


@mutant("flat", "the first LeakyReLU is missing", {"leaky", "conv"}, "activation missing", shows="negative inputs")
def _(twin):
    flat_forward(twin, start=lambda x: x)


@mutant("flat", "the first LeakyReLU: slope 0.01", {"leaky", "conv"}, "another slope", shows="negative inputs")
def _(twin):
    flat_forward(twin, start=F.leaky_relu)


@mutant("flat", "ReLU in place of LeakyReLU", {"leaky", "conv"}, "another activation", shows="negative inputs")
def _(twin):
    flat_forward(twin, start=F.relu)


@mutant("flat", "conv: padding=1", {"conv"}, "padding", shows="other size")
def _(twin):
    flat_forward(twin, pad=lambda x: F.pad(x, (1, 1, 1, 1)))


@mutant("flat", "conv: kernel not permuted at all", {"conv"}, "kernel axes permuted")
def _(twin):
    put(twin.conv.weight, twin.conv.weight.permute(2, 3, 1, 0))


@mutant("flat", "conv: kernel with its axes reversed", {"conv"}, "height and width exchanged")
def _(twin):
    put(twin.conv.weight, twin.conv.weight.transpose(2, 3))


def transfer_without(twin: nn.Module, layer: str) -> None:
    """Fill the flat twin anew, and let one layer out of ``flatten``."""
    network = load_network("flat")
    flatten = {name: shape for name, shape in network.flatten.items() if name != layer}
    transfer(network.probes[0].keras_model, twin, network.mapping, flatten)


@mutant("flat", "bn: vectors in Keras's order of features", {"norm"}, "flatten order")
def _(twin):
    transfer_without(twin, "norm")


@mutant("flat", "fc1: rows in Keras's order of features", {"hidden"}, "flatten order")
def _(twin):
    transfer_without(twin, "hidden")


@mutant("flat", "bn: statistics left at 0 and 1", {"norm"}, "statistics left at 0 and 1")
def _(twin):
    twin.bn.reset_running_stats()


@mutant("flat", "hard sigmoid in place of sigmoid", {"sigmoid", "head"}, "another activation")
def _(twin):
    flat_forward(twin, sigmoid=F.hardsigmoid)


@mutant("flat", "fc2: not transposed", {"head"}, "kernel not transposed")
def _(twin):
    put(twin.fc2.weight, twin.fc2.weight.T)


@mutant("flat", "bn: in train mode", {"norm"}, "train mode")
def _(twin):
    twin.bn.train()


# --- Two inputs and two heads ---------------------------------------------------------------------------------------


def heads_forward(
    twin: nn.Module,
    join: Callable[[Tensor, Tensor], list[Tensor]] = lambda x, y: [x, y],
    heads: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda left, right: (left, right),
) -> None:
    """Give the twin with two heads another way to join its branches, or to return its outputs."""

    def forward(self, image, text):
        x = self.pool(self.image(image)).flatten(1)
        y = torch.tanh(self.conv1d(self.words(text).transpose(1, 2))).mean(-1)
        both = torch.relu(self.shared(torch.cat(join(x, y), -1)))
        return heads(self.left(both), self.right(both))

    another_forward(twin, forward)


@mutant("heads", "weights of the heads exchanged", {"left", "right"}, "heads exchanged")
def _(twin):
    exchange_tensors(twin.left, twin.right)


@mutant("heads", "outputs in the other order", {"left", "right"}, "heads exchanged")
def _(twin):
    heads_forward(twin, heads=lambda left, right: (right, left))


@mutant("heads", "right: the weights of left", {"right"}, "weights of another layer")
def _(twin):
    twin.right.load_state_dict(twin.left.state_dict())


@mutant("heads", "branches joined in the other order", {"both", "shared"}, "another skip")
def _(twin):
    heads_forward(twin, join=lambda x, y: [y, x])


@mutant("heads", "height and width of the image exchanged", {"image", "image_conv"}, "input axes exchanged")
def _(twin):
    before(twin, lambda x: x.transpose(2, 3))


@mutant("heads", "image: colours in the order blue, green, red", {"image", "image_conv"}, "channels reversed")
def _(twin):
    before(twin, lambda x: x.flip(1))


@mutant("heads", "image.0: ReLU missing", {"image_conv"}, "activation missing")
def _(twin):
    twin.image[1] = nn.Identity()


@mutant("heads", "image.2: initial values left", {"image_conv_2"}, "weights not moved")
def _(twin):
    reset(twin.image[2])


@mutant("heads", "conv1d: in and out of the kernel exchanged", {"text_conv"}, "kernel axes permuted")
def _(twin):
    put(twin.conv1d.weight, twin.conv1d.weight.transpose(0, 1))


@mutant("heads", "words: vectors through float16", {"embedding"}, "precision")
def _(twin):
    halves(twin.words, "weight")


@mutant("heads", "words: initial vectors left", {"embedding"}, "weights not moved")
def _(twin):
    reset(twin.words)


@mutant("heads", "shared: bias missing", {"shared"}, "bias missing")
def _(twin):
    put(twin.shared.bias, 0.0)


@mutant(
    "heads",
    "the image branch is detached",
    {"both", "image_average", "image_conv_2"},
    "gradient stopped",
    shows="training",
)
def _(twin):
    heads_forward(twin, join=lambda x, y: [x.detach(), y])


@mutant("heads", "words: frozen", {"embedding"}, "layer frozen", shows="training")
def _(twin):
    twin.words.requires_grad_(False)


# --- A model within a model, and a layer called twice ---------------------------------------------------------------


@mutant("nested", "inner.0: kernel flipped", {"inner_conv"}, "kernel flipped")
def _(twin):
    put(twin.inner[0].weight, twin.inner[0].weight.flip(2))


@mutant("nested", "inner.1: eps left at 1e-5", {"inner_norm"}, "epsilon")
def _(twin):
    twin.inner[1].eps = 1e-5


@mutant("nested", "inner.1: in train mode", {"inner_norm"}, "train mode")
def _(twin):
    twin.inner[1].train()


@mutant("nested", "inner.1: scale and offset exchanged", {"inner_norm"}, "BatchNormalization vectors exchanged")
def _(twin):
    exchange(twin.inner[1].weight, twin.inner[1].bias)


@mutant("nested", "inner.2: ReLU missing", {"inner_relu"}, "activation missing")
def _(twin):
    twin.inner[2] = nn.Identity()


@mutant("nested", "relu: in place, before the skip reads", {"minus", "first_relu"}, "overwritten in place")
def _(twin):
    twin.relu.inplace = True


def nested_forward(
    twin: nn.Module, second: str = "twice", minus: Callable[[Tensor, Tensor], Tensor] = torch.sub
) -> None:
    """Give the nested twin another module for the second call, or another subtraction."""

    def forward(self, x):
        x = self.get_submodule(second)(self.swish(self.twice(x)))
        x = self.dropout(self.larger(minus(self.inner(self.relu(x)), x)))
        return self.head(x.amax((2, 3)))

    another_forward(twin, forward)


@mutant("nested", "twice: another module for the second call", {"twice"}, "weights not moved")
def _(twin):
    twin.again = like(twin.twice, nn.Conv2d, padding=1)
    reset(twin.again)
    nested_forward(twin, second="again")


@mutant("nested", "twice: height and width exchanged", {"twice"}, "height and width exchanged")
def _(twin):
    put(twin.twice.weight, twin.twice.weight.transpose(2, 3))


@mutant("nested", "swish: ReLU", {"swish"}, "another activation")
def _(twin):
    twin.swish = nn.ReLU()


@mutant("nested", "subtracted the other way round", {"minus"}, "another skip")
def _(twin):
    nested_forward(twin, minus=lambda y, x: x - y)


@mutant("nested", "dropout: rate 0.5", {"dropout"}, "dropout rate", shows="training")
def _(twin):
    twin.dropout.p = 0.5


@mutant("nested", "inner.1: momentum left at 0.1", {"inner_norm"}, "momentum", shows="training")
def _(twin):
    twin.inner[1].momentum = 0.1
