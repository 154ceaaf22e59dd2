"""A vision transformer with pre-norm blocks, and a twin in timm's style with one Linear for query, key and value."""

import functools

from course.mutants.tools import another_forward, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, attention, convolution, dense, drawn, fused, norm, randomized, under, values

import keras
import numpy as np
import torch
from keras import layers as L
from torch import Tensor, nn

DEPTH, WIDTH, HEADS, PATCHES = 2, 24, 4, 15


@keras.saving.register_keras_serializable("networks")
class ClassToken(L.Layer):
    """Put a learned token before the others."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the token (1, 1, width)."""
        self.token = self.add_weight(name="token", shape=(1, 1, input_shape[-1]), initializer="zeros")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Map (b, n, width) to (b, n + 1, width)."""
        batch = keras.ops.shape(x)[0]
        return keras.ops.concatenate([keras.ops.broadcast_to(self.token, (batch, 1, x.shape[-1])), x], axis=1)


@keras.saving.register_keras_serializable("networks")
class PositionTable(L.Layer):
    """Add a learned vector for each position."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the table (1, n, width)."""
        self.table = self.add_weight(name="table", shape=(1, *input_shape[1:]), initializer="random_normal")

    def call(self, x: keras.KerasTensor) -> keras.KerasTensor:
        """Keep the shape (b, n, width)."""
        return x + self.table


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three pictures that are not square."""
    start = keras.Input((12, 20, 3), name="picture")
    x = L.Conv2D(WIDTH, 4, strides=4, name="patches")(start)
    x = L.Reshape((PATCHES, WIDTH), name="tokens")(x)
    x = PositionTable(name="positions")(ClassToken(name="class_token")(x))
    for block in range(DEPTH):
        y = L.LayerNormalization(epsilon=1e-3, name=f"norm_1_{block}")(x)
        y = L.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention_{block}")(y, y)
        x = L.Add(name=f"add_1_{block}")([x, y])
        y = L.LayerNormalization(epsilon=1e-3, name=f"norm_2_{block}")(x)
        y = L.Dense(48, activation="gelu", name=f"mlp_1_{block}")(y)
        x = L.Add(name=f"add_2_{block}")([x, L.Dense(WIDTH, name=f"mlp_2_{block}")(y)])
    x = L.LayerNormalization(epsilon=1e-3, name="norm")(x)
    x = L.Dense(7, name="head")(x[:, 0])
    return randomized(keras.Model(start, x, name="vit"), 6), [drawn(3, 12, 20, 3, seed=1)]


class PatchEmbed(nn.Module):
    """A token for each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, 4, stride=4)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, h, w) to (b, h w / 16, width)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention with one Linear for query, key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map (b, n, 3 width) to three times (b, heads, n, width / heads)."""
        b, n, _ = x.shape
        return x.reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (b, n, width)."""
        q, k, v = self.split(self.qkv(x))
        weights = ((q * self.scale) @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(x.shape))


class Mlp(nn.Module):
    """The two Linear of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH, eps=1e-3), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH, eps=1e-3), Mlp()

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (b, n, width)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, PATCHES + 1, WIDTH))
        self.patch_embed = PatchEmbed()
        self.blocks = nn.Sequential(*(Block() for _ in range(DEPTH)))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-3)
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, 3, 12, 20) to (b, 7)."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    tensors = {
        "cls_token": values(get("class_token"))["token"],
        "pos_embed": values(get("positions"))["table"],
        **under("patch_embed.proj", convolution(get("patches"))),
        **under("norm", norm(get("norm"))),
        **under("head", dense(get("head"))),
    }
    for block in range(DEPTH):
        within = {
            **under("norm1", norm(get(f"norm_1_{block}"))),
            **under("attn.qkv", fused(get(f"attention_{block}"))),
            **under("attn.proj", attention(get(f"attention_{block}"))["output"]),
            **under("norm2", norm(get(f"norm_2_{block}"))),
            **under("mlp.fc1", dense(get(f"mlp_1_{block}"))),
            **under("mlp.fc2", dense(get(f"mlp_2_{block}"))),
        }
        tensors |= under(f"blocks.{block}", within)
    return tensors


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


def packed_in_order(linear: nn.Linear, order: tuple[int, ...]) -> None:
    """Put the thirds of a fused Linear into another order."""
    for tensor in (linear.weight, linear.bias):
        thirds = tensor.detach().chunk(3)
        put(tensor, torch.cat([thirds[third] for third in order]))


@mistaken("block 0: key dimension before heads", {"attention_0"}, "head axes")
def _(twin):
    for tensor in (twin.blocks[0].attn.qkv.weight, twin.blocks[0].attn.qkv.bias):
        put(tensor, tensor.detach().unflatten(0, (3, HEADS, -1)).transpose(1, 2).flatten(0, 2))


@mistaken("block 1: split into heads, then query, key and value", {"attention_1"}, "packed order")
def _(twin):
    def split(self, x):
        b, n, _ = x.shape
        return x.reshape(b, n, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)

    twin.blocks[1].attn.__class__ = type("Attention", (Attention,), {"split": split})


@mistaken("block 0: packed as key, query, value", {"attention_0"}, "packed order")
def _(twin):
    packed_in_order(twin.blocks[0].attn.qkv, (1, 0, 2))


@mistaken("block 1: packed as query, value, key", {"attention_1"}, "key and value exchanged")
def _(twin):
    packed_in_order(twin.blocks[1].attn.qkv, (0, 2, 1))


@mistaken("block 0: output not transposed", {"attention_0"}, "output not transposed")
def _(twin):
    put(twin.blocks[0].attn.proj.weight, twin.blocks[0].attn.proj.weight.T)


@mistaken("block 0: scale missing", {"attention_0"}, "scale missing")
def _(twin):
    twin.blocks[0].attn.scale = 1.0


@mistaken("block 0: post-norm", {"norm_1_0", "attention_0"}, "pre-norm for post-norm")
def _(twin):
    def forward(self, x):
        x = self.norm1(x + self.attn(x))
        return self.norm2(x + self.mlp(x))

    another_forward(twin.blocks[0], forward)


@mistaken("block 1: epsilon left at 1e-5", {"norm_2_1"}, "epsilon")
def _(twin):
    twin.blocks[1].norm2.eps = 1e-5


@mistaken("block 1: GELU by tanh", {"mlp_1_1"}, "another activation")
def _(twin):
    twin.blocks[1].mlp.act = nn.GELU(approximate="tanh")


@mistaken("patches column by column", {"tokens", "class_token"}, "flatten order")
def _(twin):
    def forward(self, x):
        return self.proj(x).transpose(2, 3).flatten(2).transpose(1, 2)

    another_forward(twin.patch_embed, forward)


@mistaken("positions one off", {"positions"}, "weights in another order")
def _(twin):
    put(twin.pos_embed, twin.pos_embed.roll(1, 1))


NETWORK = Network(
    name="vision transformer",
    keras_model=keras_model,
    twin=Twin,
    mistakes=tuple(MISTAKES),
    fill_by_hand=fill_by_hand,
    within_float64=1e-7,  # Keras rounds the scale of attention and a constant of GELU to float32
)
