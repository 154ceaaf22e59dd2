"""A text transformer with post-norm blocks and a mask, and a twin of nn.TransformerEncoder."""

import functools

from course.mutants.tools import put
from tests.networks.base import Mistake, Network, mistake
from tests.networks.by_hand import Tensors, dense, embedding, norm, randomized, torch_attention, under, words

import keras
import numpy as np
import torch
from keras import layers as L
from torch import Tensor, nn

DEPTH, WIDTH, HEADS, LENGTHS = 2, 24, 4, (10, 7, 4)


@keras.saving.register_keras_serializable("networks")
class TokensAndPositions(L.Layer):
    """Embed words and the places where they stand, as in the examples of Keras."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make both tables."""
        self.words = L.Embedding(40, WIDTH, name="words")
        self.places = L.Embedding(input_shape[-1], WIDTH, name="places")
        self.words.build(input_shape)
        self.places.build(input_shape)

    def call(self, text: keras.KerasTensor) -> keras.KerasTensor:
        """Map (b, words) to (b, words, width)."""
        return self.words(text) + self.places(keras.ops.arange(text.shape[-1]))


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and a batch of three texts; 0 stands behind the end of a text."""
    start = keras.Input((10,), name="text", dtype="int32")
    mask = keras.ops.not_equal(start, 0)
    x = TokensAndPositions(name="embedding")(start)
    for block in range(DEPTH):
        attention = L.MultiHeadAttention(HEADS, WIDTH // HEADS, name=f"attention_{block}")
        x = L.Add(name=f"add_1_{block}")([x, attention(x, x, attention_mask=keras.ops.expand_dims(mask, 1))])
        x = L.LayerNormalization(epsilon=1e-3, name=f"norm_1_{block}")(x)
        y = L.Dense(32, activation="relu", name=f"wide_{block}")(x)
        x = L.Add(name=f"add_2_{block}")([x, L.Dense(WIDTH, name=f"narrow_{block}")(y)])
        x = L.LayerNormalization(epsilon=1e-3, name=f"norm_2_{block}")(x)
    x = L.GlobalAveragePooling1D(name="average")(x, mask=mask)
    x = L.Dense(3, name="classes")(x)
    text = words(3, 10, size=40, seed=1)
    text[np.arange(10) >= np.array(LENGTHS)[:, None]] = 0
    return randomized(keras.Model(start, x, name="text_transformer"), 7), [text]


class Twin(nn.Module):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(40, WIDTH)
        self.position_embedding = nn.Embedding(10, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 32, dropout=0.0, layer_norm_eps=1e-3, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False)
        self.fc = nn.Linear(WIDTH, 3)

    def embedded(self, text: Tensor) -> Tensor:
        """Map (b, words) to (b, words, width)."""
        places = torch.arange(text.shape[1], device=text.device)
        return self.word_embedding(text) + self.position_embedding(places)

    def encoded(self, x: Tensor, padding: Tensor) -> Tensor:
        """Keep the shape (b, words, width). ``padding`` is True behind the end of a text."""
        return self.encoder(x, src_key_padding_mask=padding)

    def average(self, x: Tensor, padding: Tensor) -> Tensor:
        """Return the mean of the words of each text."""
        kept = (~padding).to(x.dtype)[..., None]
        return (x * kept).sum(1) / kept.sum(1)

    def forward(self, text: Tensor) -> Tensor:
        """Map (b, words) to (b, 3)."""
        padding = text == 0
        return self.fc(self.average(self.encoded(self.embedded(text), padding), padding))


def fill_by_hand(model: keras.Model) -> Tensors:
    """Return the state dict of the right twin."""
    get = model.get_layer
    tensors = {
        **under("word_embedding", embedding(get("embedding").words)),
        **under("position_embedding", embedding(get("embedding").places)),
        **under("fc", dense(get("classes"))),
    }
    for block in range(DEPTH):
        within = {
            **under("self_attn", torch_attention(get(f"attention_{block}"))),
            **under("norm1", norm(get(f"norm_1_{block}"))),
            **under("linear1", dense(get(f"wide_{block}"))),
            **under("linear2", dense(get(f"narrow_{block}"))),
            **under("norm2", norm(get(f"norm_2_{block}"))),
        }
        tensors |= under(f"encoder.layers.{block}", within)
    return tensors


MISTAKES: list[Mistake] = []
mistaken = functools.partial(mistake, MISTAKES)


def mask_by(twin: nn.Module, way) -> None:
    """Give the encoder another mask."""

    def encoded(self, x, padding):
        return self.encoder(x, src_key_padding_mask=way(padding))

    twin.__class__ = type("Twin", (Twin,), {"encoded": encoded})


def packed(block: nn.Module, change) -> None:
    """Change the packed weights of a block's attention: a function of (3, heads, key dimension, ...)."""
    for tensor in (block.self_attn.in_proj_weight, block.self_attn.in_proj_bias):
        put(tensor, change(tensor.detach().unflatten(0, (3, HEADS, -1))).flatten(0, 2))


@mistaken("mask forgotten", {"attention_0"}, "mask ignored")
def _(twin):
    mask_by(twin, lambda padding: None)


@mistaken("mask is True for words, as in Keras", {"attention_0"}, "mask inverted")
def _(twin):
    mask_by(twin, lambda padding: ~padding)


@mistaken("block 0: key dimension before heads", {"attention_0"}, "head axes")
def _(twin):
    packed(twin.encoder.layers[0], lambda x: x.transpose(1, 2))


@mistaken("block 1: packed as key, query, value", {"attention_1"}, "packed order")
def _(twin):
    packed(twin.encoder.layers[1], lambda x: x[[1, 0, 2]])


@mistaken("block 0: packed as query, value, key", {"attention_0"}, "key and value exchanged")
def _(twin):
    packed(twin.encoder.layers[0], lambda x: x[[0, 2, 1]])


@mistaken("block 1: output not transposed", {"attention_1"}, "output not transposed")
def _(twin):
    weight = twin.encoder.layers[1].self_attn.out_proj.weight
    put(weight, weight.T)


@mistaken("norm_first=True", {"norm_1_0", "attention_0"}, "pre-norm for post-norm")
def _(twin):
    for layer in twin.encoder.layers:
        layer.norm_first = True


@mistaken("batch_first forgotten", {"attention_0"}, "time and batch exchanged")
def _(twin):
    def encoded(self, x, padding):
        return self.encoder(x, src_key_padding_mask=padding.T)

    twin.__class__ = type("Twin", (Twin,), {"encoded": encoded})
    for layer in twin.encoder.layers:
        layer.self_attn.batch_first = False


@mistaken("block 0: epsilon left at 1e-5", {"norm_2_0"}, "epsilon")
def _(twin):
    twin.encoder.layers[0].norm2.eps = 1e-5


@mistaken("block 1: GELU for ReLU", {"wide_1"}, "another activation")
def _(twin):
    twin.encoder.layers[1].activation = nn.functional.gelu
    twin.encoder.layers[1].activation_relu_or_gelu = 2


@mistaken("positions from 1", {"embedding"}, "weights in another order")
def _(twin):
    put(twin.position_embedding.weight, twin.position_embedding.weight.roll(1, 0))


@mistaken("the mean counts what is behind the end", {"average"}, "mask ignored")
def _(twin):
    twin.__class__ = type("Twin", (Twin,), {"average": lambda self, x, padding: x.mean(1)})


NETWORK = Network(
    name="text transformer",
    keras_model=keras_model,
    twin=Twin,
    mistakes=tuple(MISTAKES),
    fill_by_hand=fill_by_hand,
    within_float64=1e-7,  # Keras rounds the scale of attention to float32
)
