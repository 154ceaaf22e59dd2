"""A small language model in the style of 2024: RMS normalization, grouped attention with a causal mask, SwiGLU."""

import functools

from course.mutants.tools import another_forward, exchange, put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, attention, dense, embedding, norm, randomized, under, values, words

import keras
import numpy as np
import torch
import torch.nn.functional as F
from keras import layers as L
from torch import Tensor, nn

DEPTH, WIDTH, HEADS, GROUPS, HEAD_DIM = 2, 24, 4, 2, 6


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three texts."""
    start = keras.Input((11,), name="text", dtype="int32")
    x = L.Embedding(40, WIDTH, name="words")(start)
    for block in range(DEPTH):
        y = L.RMSNormalization(epsilon=1e-3, name=f"norm_1_{block}")(x)
        attend = L.GroupQueryAttention(HEAD_DIM, HEADS, GROUPS, use_bias=False, name=f"attention_{block}")
        x = L.Add(name=f"add_1_{block}")([x, attend(y, y, use_causal_mask=True)])
        y = L.RMSNormalization(epsilon=1e-3, name=f"norm_2_{block}")(x)
        gate = L.Dense(32, use_bias=False, activation="silu", name=f"gate_{block}")(y)
        up = L.Dense(32, use_bias=False, name=f"up_{block}")(y)
        y = L.Multiply(name=f"gated_{block}")([gate, up])
        y = L.EinsumDense("btf,fd->btd", (None, WIDTH), name=f"down_{block}")(y)
        x = L.Add(name=f"add_2_{block}")([x, y])
    x = L.RMSNormalization(epsilon=1e-3, name="norm")(x)
    x = L.Dense(40, use_bias=False, name="next_word")(x)
    return randomized(keras.Model(start, x, name="decoder"), 10), [words(3, 11, size=40, seed=1)]


class RMSNorm(nn.Module):
    """Division by the root of the mean square, then a scale."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (..., width)."""
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Attention(nn.Module):
    """Causal attention, in which several heads of the query share one of key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, HEADS * HEAD_DIM, bias=False)
        self.k_proj = nn.Linear(WIDTH, GROUPS * HEAD_DIM, bias=False)
        self.v_proj = nn.Linear(WIDTH, GROUPS * HEAD_DIM, bias=False)
        self.o_proj = nn.Linear(HEADS * HEAD_DIM, WIDTH, bias=False)
        self.is_causal, self.scale = True, HEAD_DIM**-0.5

    def shared(self, x: Tensor) -> Tensor:
        """Repeat the heads (b, groups, t, head dimension) for those of the query."""
        return x.repeat_interleave(HEADS // GROUPS, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (b, t, width)."""
        b, t, _ = x.shape
        q = self.q_proj(x).view(b, t, HEADS, HEAD_DIM).transpose(1, 2)
        k = self.k_proj(x).view(b, t, GROUPS, HEAD_DIM).transpose(1, 2)
        v = self.v_proj(x).view(b, t, GROUPS, HEAD_DIM).transpose(1, 2)
        k, v = self.shared(k), self.shared(v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal, scale=self.scale)
        return self.o_proj(y.transpose(1, 2).reshape(b, t, -1))


class SwiGLU(nn.Module):
    """A gate with SiLU, beside a Linear, and a Linear behind both."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(WIDTH, 32, bias=False)
        self.up_proj = nn.Linear(WIDTH, 32, bias=False)
        self.down_proj = nn.Linear(32, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (b, t, width)."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self) -> None:
        super().__init__()
        self.input_norm, self.attention = RMSNorm(WIDTH, 1e-3), Attention()
        self.post_attention_norm, self.mlp = RMSNorm(WIDTH, 1e-3), SwiGLU()

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape (b, t, width)."""
        x = x + self.attention(self.input_norm(x))
        return x + self.mlp(self.post_attention_norm(x))


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(40, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = RMSNorm(WIDTH, 1e-3)
        self.lm_head = nn.Linear(WIDTH, 40, bias=False)

    def forward(self, text: Tensor) -> Tensor:
        """Map (b, t) to (b, t, 40)."""
        x = self.embed_tokens(text)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    tensors = {
        **under("embed_tokens", embedding(get("words"))),
        **under("norm", norm(get("norm"))),
        **under("lm_head", dense(get("next_word"))),
    }
    for block in range(DEPTH):
        parts = attention(get(f"attention_{block}"))
        within = {
            **under("input_norm", norm(get(f"norm_1_{block}"))),
            **under("attention.q_proj", parts["query"]),
            **under("attention.k_proj", parts["key"]),
            **under("attention.v_proj", parts["value"]),
            **under("attention.o_proj", parts["output"]),
            **under("post_attention_norm", norm(get(f"norm_2_{block}"))),
            **under("mlp.gate_proj", dense(get(f"gate_{block}"))),
            **under("mlp.up_proj", dense(get(f"up_{block}"))),
            "mlp.down_proj.weight": values(get(f"down_{block}"))["kernel"].T.contiguous(),
        }
        tensors |= under(f"layers.{block}", within)
    return tensors


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


@mistaken("block 0: heads repeated as a whole", {"attention_0"}, "head axes")
def _(twin):
    repeated = {"shared": lambda self, x: x.repeat(1, HEADS // GROUPS, 1, 1)}
    twin.layers[0].attention.__class__ = type("Attention", (Attention,), repeated)


@mistaken("block 1: key dimension of the query before its heads", {"attention_1"}, "head axes")
def _(twin):
    weight = twin.layers[1].attention.q_proj.weight
    put(weight, weight.detach().unflatten(0, (HEADS, HEAD_DIM)).transpose(0, 1).flatten(0, 1))


@mistaken("block 1: causal mask missing", {"attention_1"}, "mask ignored")
def _(twin):
    twin.layers[1].attention.is_causal = False


@mistaken("block 0: scale missing", {"attention_0"}, "scale missing")
def _(twin):
    twin.layers[0].attention.scale = 1.0


@mistaken("block 0: key and value exchanged", {"attention_0"}, "key and value exchanged")
def _(twin):
    exchange(twin.layers[0].attention.k_proj.weight, twin.layers[0].attention.v_proj.weight)


@mistaken("block 1: output not transposed", {"attention_1"}, "output not transposed")
def _(twin):
    put(twin.layers[1].attention.o_proj.weight, twin.layers[1].attention.o_proj.weight.T)


@mistaken("block 0: epsilon 1e-6", {"norm_1_0"}, "epsilon")
def _(twin):
    twin.layers[0].input_norm.eps = 1e-6


@mistaken("block 1: gate and up exchanged", {"gate_1", "up_1"}, "weights of another layer")
def _(twin):
    exchange(twin.layers[1].mlp.gate_proj.weight, twin.layers[1].mlp.up_proj.weight)


@mistaken("block 0: GELU for SiLU", {"gate_0"}, "another activation")
def _(twin):
    def forward(self, x):
        return self.down_proj(F.gelu(self.gate_proj(x)) * self.up_proj(x))

    another_forward(twin.layers[0].mlp, forward)


@mistaken("block 0: norm after the attention", {"norm_1_0", "attention_0"}, "pre-norm for post-norm")
def _(twin):
    def forward(self, x):
        x = self.input_norm(x + self.attention(x))
        return self.post_attention_norm(x + self.mlp(x))

    another_forward(twin.layers[0], forward)


NETWORK = Network(
    name="decoder",
    keras_model=keras_model,
    twin=Twin,
    mistakes=tuple(MISTAKES),
    fill_by_hand=fill_by_hand,
    within_float64=1e-7,  # Keras rounds the scale of attention to float32
)
