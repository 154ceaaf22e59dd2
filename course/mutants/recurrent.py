"""Recurrent layers of all kinds, in both directions and with a mask: the network, its twin and its mutants."""

import functools
from collections.abc import Callable

from course.mutants.base import Mutant, Network, enter
from course.mutants.building import keras_input, keras_layer, ported, probes_of
from course.mutants.tools import another_forward, put
from course.small_models import table
from parity import recurrent

import keras
import torch
from torch import Tensor, nn

UNITS = 4


def _keras_model(steps: int) -> keras.Model:
    words = keras_input(steps, name="words", dtype="int32")
    x = keras_layer("Embedding", 11, 6, mask_zero=True, name="embedding")(words)
    x = keras_layer("GRU", UNITS, reset_after=False, return_sequences=True, name="old")(x)
    series = keras_input(steps, 3, name="series")
    both = keras_layer("LSTM", UNITS, return_sequences=True, name="lstm")
    y = keras_layer("Bidirectional", both, name="both")(series)
    y = keras_layer("GRU", UNITS, return_sequences=True, go_backwards=True, name="back")(y)
    y = keras_layer("SimpleRNN", UNITS, return_sequences=True, name="simple")(y)
    ends = keras_layer("Bidirectional", keras_layer("GRU", UNITS, name="gru"), merge_mode="sum", name="ends")(y)
    last = keras_layer("LSTM", UNITS, recurrent_activation="hard_sigmoid", name="last")(x)
    joined = keras_layer("Concatenate", name="joined")([last, ends])
    return keras.Model([words, series], keras_layer("Dense", 2, name="out")(joined), name="recurrent")


class Recurrent(nn.Module):
    """The twin. The series comes as (batch, features, time)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.old = recurrent.GRU(6, UNITS)
        self.both = nn.LSTM(3, UNITS, batch_first=True, bidirectional=True)
        self.back = nn.GRU(2 * UNITS, UNITS, batch_first=True)
        self.simple = nn.RNN(UNITS, UNITS, batch_first=True)
        self.ends = nn.GRU(UNITS, UNITS, batch_first=True, bidirectional=True)
        self.last = recurrent.LSTM(UNITS, UNITS, recurrent_activation="hard_sigmoid")
        self.out = nn.Linear(2 * UNITS, 2)

    def forward(self, words: Tensor, series: Tensor) -> Tensor:
        """Map (batch, time) and (batch, 3, time) to (batch, 2)."""
        mask = words != 0
        x, _ = self.old(self.embedding(words), mask=mask)
        y, _ = self.both(series.mT)
        y, _ = self.back(y.flip(1))
        y, _ = self.simple(y)
        _, ends = self.ends(y)
        _, (last, _) = self.last(x, mask=mask)
        return self.out(torch.cat([last, ends[0] + ends[1]], 1))


_NAMES = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh", "bias": "bias_ih"}


def _rows(model: keras.Model) -> list[tuple[str, str]]:
    """Return the rows of the mapping, each layer's in the order of its weights."""
    rows = []
    for weight in model.weights:
        layer, tensor = weight.path.split("/")[0], weight.path.rpartition("/")[2]
        if layer in ("embedding", "out"):
            rows.append((weight.path, f"{layer}.{'bias' if tensor == 'bias' else 'weight'}"))
            continue
        slot = "_l0_reverse" if "backward" in weight.path else "_l0"
        rows.append((weight.path, f"{layer}.{_NAMES[tensor]}{slot}"))
        if tensor == "bias" and layer in ("both", "simple", "back", "ends"):
            again = weight.path if layer in ("back", "ends") else ""
            rows.append((again, f"{layer}.bias_hh{slot}"))
    return rows


@functools.cache
def network() -> Network:
    """Return the network; it is built once."""
    probes = probes_of(_keras_model, [(3, 7), (2, 5)])
    model = probes[0].keras_model
    return ported(model.name, probes, Recurrent().double(), table(*_rows(model)))


MUTANTS: list[Mutant] = []
mutant = functools.partial(enter, MUTANTS, "recurrent")


def _gates(module: nn.Module, order: tuple[int, ...], slot: str = "_l0") -> None:
    """Put the gates of a module into another order."""
    for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        tensor = getattr(module, kind + slot, None)
        if tensor is not None:
            parts = tensor.chunk(len(order))
            put(tensor, torch.cat([parts[gate] for gate in order]))


def _like(module: nn.Module, new: nn.Module) -> nn.Module:
    """Give a new recurrent module what another has, and 0 where the other has nothing."""
    for name, tensor in new.double().named_parameters():
        old = getattr(module, name, None)
        put(tensor, 0.0 if old is None else old)
    return new


def _forward(twin: nn.Module, **changes: Callable) -> None:
    """Give the twin another forward; each change is of what one of its layers takes or returns."""
    same = {name: (lambda x: x) for name in ("series", "both", "backwards", "back", "simple", "mask")}
    do = same | {"ends": lambda y, states: states[0] + states[1], "last": lambda x, state: state[0]} | changes

    def forward(self, words, series):
        mask = do["mask"](words != 0)
        x, _ = self.old(self.embedding(words), mask=mask)
        y, _ = self.both(do["series"](series.mT))
        y, _ = self.back(do["backwards"](do["both"](y).flip(1)))
        y, _ = self.simple(do["back"](y))
        outputs, states = self.ends(do["simple"](y))
        sequence, state = self.last(x, mask=mask)
        return self.out(torch.cat([do["last"](sequence, state), do["ends"](outputs, states)], 1))

    another_forward(twin, forward)


@mutant("both: forget gate before input gate", {"both"}, "gate order")
def _(twin):
    _gates(twin.both, (1, 0, 2, 3))


@mutant("both: the gates of ONNX, i, o, f, c", {"both"}, "gate order")
def _(twin):
    _gates(twin.both, (0, 3, 1, 2))
    _gates(twin.both, (0, 3, 1, 2), "_l0_reverse")


@mutant("back: Keras's gates z, r, h", {"back"}, "gate order")
def _(twin):
    _gates(twin.back, (1, 0, 2))


@mutant("ends: backward gates z, r, h", {"ends"}, "gate order")
def _(twin):
    _gates(twin.ends, (1, 0, 2), "_l0_reverse")


@mutant("both: its bias in both of PyTorch's", {"both"}, "bias added twice")
def _(twin):
    for way in ("", "_reverse"):
        put(getattr(twin.both, f"bias_hh_l0{way}"), getattr(twin.both, f"bias_ih_l0{way}"))


@mutant("simple: its bias in both of PyTorch's", {"simple"}, "bias added twice")
def _(twin):
    put(twin.simple.bias_hh_l0, twin.simple.bias_ih_l0)


@mutant("back: the second bias not moved", {"back"}, "weights hold other numbers")
def _(twin):
    put(twin.back.bias_hh_l0, 0.0)


@mutant("both: bias left at 0", {"both"}, "bias missing")
def _(twin):
    put(twin.both.bias_ih_l0, 0.0)
    put(twin.both.bias_ih_l0_reverse, 0.0)


@mutant("simple: recurrent kernel not transposed", {"simple"}, "kernel not transposed")
def _(twin):
    put(twin.simple.weight_hh_l0, twin.simple.weight_hh_l0.T.clone())


@mutant("both: the two directions exchanged", {"both"}, "direction")
def _(twin):
    for kind in ("weight_ih", "weight_hh", "bias_ih"):
        one, other = getattr(twin.both, f"{kind}_l0"), getattr(twin.both, f"{kind}_l0_reverse")
        kept = one.clone()
        put(one, other)
        put(other, kept)


@mutant("both: its halves in the other order", {"back"}, "direction", in_forward=True)
def _(twin):
    _forward(twin, both=lambda y: y.roll(UNITS, -1))


@mutant("both: the backward half not turned round", {"back"}, "reversed output", in_forward=True)
def _(twin):
    _forward(twin, both=lambda y: torch.cat([y[..., :UNITS], y[..., UNITS:].flip(1)], -1))


@mutant("back: goes forward", {"back"}, "direction", in_forward=True)
def _(twin):
    _forward(twin, backwards=lambda y: y.flip(1))


@mutant("back: turned round again", {"simple"}, "reversed output", in_forward=True)
def _(twin):
    _forward(twin, back=lambda y: y.flip(1))


@mutant("ends: the last step of both directions", {"joined", "out"}, "another step", in_forward=True)
def _(twin):
    _forward(twin, ends=lambda outputs, states: outputs[:, -1, :UNITS] + outputs[:, -1, UNITS:])


@mutant("ends: averaged", {"joined", "out"}, "another merge", in_forward=True)
def _(twin):
    _forward(twin, ends=lambda outputs, states: (states[0] + states[1]) / 2)


@mutant("last: its first step", {"joined", "out"}, "another step", in_forward=True)
def _(twin):
    _forward(twin, last=lambda sequence, state: sequence[:, 0])


@mutant("last: its cell", {"joined", "out"}, "another step", in_forward=True)
def _(twin):
    _forward(twin, last=lambda sequence, state: state[1])


@mutant("both: without batch_first", {"both"}, "time and batch exchanged")
def _(twin):
    twin.both.batch_first = False


@mutant("simple: without batch_first", {"simple"}, "time and batch exchanged")
def _(twin):
    twin.simple.batch_first = False


@mutant("old, last: no mask", {"old"}, "mask ignored", in_forward=True)
def _(twin):
    _forward(twin, mask=lambda mask: None)


@mutant("old, last: the mask of what is padded", {"old"}, "mask inverted", in_forward=True)
def _(twin):
    _forward(twin, mask=lambda mask: ~mask)


@mutant("last: sigmoid for hard_sigmoid", {"last"}, "recurrent activation")
def _(twin):
    twin.last = _like(twin.last, recurrent.LSTM(UNITS, UNITS))


@mutant("last: relu for tanh", {"last"}, "another activation")
def _(twin):
    module = recurrent.LSTM(UNITS, UNITS, activation="relu", recurrent_activation="hard_sigmoid")
    twin.last = _like(twin.last, module)


@mutant("old: reset_after", {"old"}, "reset_after")
def _(twin):
    twin.old = _like(twin.old, recurrent.GRU(6, UNITS, reset_after=True))
