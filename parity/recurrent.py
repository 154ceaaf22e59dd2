"""Recurrent layers that PyTorch does not have: other activations, GRU with ``reset_after=False``, and masks.

``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` have fixed activations, know no mask, and their GRU applies the reset gate after
the matrix product. Keras's layers have settings for all of this. The modules here have Keras's settings, and the names,
shapes and gate order of PyTorch's tensors, so that ``parity.transfer`` fills them like PyTorch's own.

The equations are those of ``keras/src/layers/rnn/{lstm,gru,simple_rnn}.py``; what happens at a masked step is that of
https://keras.io/guides/understanding_masking_and_padding/: the state stays as it is, and the output is repeated.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "elu": F.elu,
    "hard_sigmoid": F.hardsigmoid,
    "linear": lambda x: x,
    "relu": torch.relu,
    "selu": F.selu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softsign": F.softsign,
    "tanh": torch.tanh,
}
"""Keras's activations by their names, as far as recurrent layers usually have them."""

State = tuple[Tensor, ...]


class Recurrent(nn.Module):
    """A recurrent layer: one direction, examples on axis 0."""

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
    ) -> None:
        super().__init__()
        for name in (activation, recurrent_activation):
            if name not in ACTIVATIONS:
                raise ValueError(f"the activation {name!r} is none of {', '.join(ACTIVATIONS)}")
        self.input_size, self.hidden_size = input_size, hidden_size
        self.activation, self.recurrent_activation = activation, recurrent_activation
        rows = self.gates * hidden_size
        self.weight_ih_l0 = nn.Parameter(torch.empty(rows, input_size))
        self.weight_hh_l0 = nn.Parameter(torch.empty(rows, hidden_size))
        self.bias_ih_l0 = nn.Parameter(torch.empty(rows)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all tensors uniformly from ±1 / sqrt(hidden_size), as PyTorch's recurrent layers do."""
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, ...]:
        """Return the state after one step. Its first tensor is the output.

        Args:
            x: What the input adds to the gates at this step: shape (batch, gates * hidden_size).
            state: Tensors of shape (batch, hidden_size).
        """
        raise NotImplementedError

    def first_state(self, x: Tensor) -> State:
        """Return the state before the first step: zeros of shape (batch, hidden_size)."""
        return (x.new_zeros(len(x), self.hidden_size),)

    def forward(self, x: Tensor, state: State | None = None, mask: Tensor | None = None) -> tuple[Tensor, State]:
        """Run over a sequence.

        Args:
            x: Shape (batch, time, input_size).
            state: The state before the first step, tensors of shape (batch, hidden_size); zeros if not given.
            mask: Shape (batch, time), true where there is a step. Where it is false the state stays as it is and the
                output is repeated; before the first true step the output is 0.

        Returns:
            The outputs, shape (batch, time, hidden_size), and the last state.
        """
        state = self.first_state(x) if state is None else state
        gates = F.linear(x, self.weight_ih_l0, self.bias_ih_l0)
        output = x.new_zeros(len(x), self.hidden_size)
        outputs = []
        for time in range(x.shape[1]):
            after = self.step(gates[:, time], state)
            if mask is None:
                state, output = after, after[0]
            else:
                real = mask[:, time, None].bool()
                state = tuple(torch.where(real, new, old) for new, old in zip(after, state, strict=True))
                output = torch.where(real, after[0], output)
            outputs.append(output)
        return torch.stack(outputs, 1), state

    def extra_repr(self) -> str:
        """Return the settings, for ``print``."""
        settings = f"{self.input_size}, {self.hidden_size}, bias={self.bias_ih_l0 is not None}"
        return f"{settings}, activation={self.activation!r}, recurrent_activation={self.recurrent_activation!r}"


class SimpleRNN(Recurrent):
    """Keras's ``SimpleRNN``, with any activation and masks."""

    def step(self, x: Tensor, state: State) -> State:
        """Return the state after one step; see ``Recurrent.step``."""
        return (ACTIVATIONS[self.activation](x + F.linear(state[0], self.weight_hh_l0)),)


class LSTM(Recurrent):
    """Keras's ``LSTM``, with any activations and masks. Its state is the output and the cell."""

    gates = 4

    def first_state(self, x: Tensor) -> State:
        """Return two tensors of zeros."""
        return super().first_state(x) * 2

    def step(self, x: Tensor, state: State) -> State:
        """Return the state after one step; see ``Recurrent.step``."""
        recurrent, activation = ACTIVATIONS[self.recurrent_activation], ACTIVATIONS[self.activation]
        before, cell = state
        i, f, g, o = (x + F.linear(before, self.weight_hh_l0)).chunk(4, 1)
        cell = recurrent(f) * cell + recurrent(i) * activation(g)
        return recurrent(o) * activation(cell), cell


class GRU(Recurrent):
    """Keras's ``GRU``, with any activations and masks.

    Args:
        input_size: Number of features of each step.
        hidden_size: Number of units.
        bias: Whether it has biases.
        activation: Of the new state.
        recurrent_activation: Of the two gates.
        reset_after: Whether the reset gate is applied after the matrix product, as in ``nn.GRU``. Keras's default has
            been true since TensorFlow 2; before, it was false. Then there is one bias, ``bias_ih_l0``.
    """

    gates = 3

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        *,
        reset_after: bool = False,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, activation, recurrent_activation)
        self.reset_after = reset_after
        self.bias_hh_l0 = nn.Parameter(torch.empty(3 * hidden_size)) if bias and reset_after else None
        self.reset_parameters()

    def step(self, x: Tensor, state: State) -> State:
        """Return the state after one step; see ``Recurrent.step``."""
        (before,) = state
        units = self.hidden_size
        recurrent, activation = ACTIVATIONS[self.recurrent_activation], ACTIVATIONS[self.activation]
        bias = self.bias_hh_l0
        if self.reset_after:
            again = F.linear(before, self.weight_hh_l0, bias)
            r, z = recurrent(x[:, : 2 * units] + again[:, : 2 * units]).chunk(2, 1)
            new = activation(x[:, 2 * units :] + r * again[:, 2 * units :])
        else:
            r, z = recurrent(x[:, : 2 * units] + F.linear(before, self.weight_hh_l0[: 2 * units])).chunk(2, 1)
            new = activation(x[:, 2 * units :] + F.linear(r * before, self.weight_hh_l0[2 * units :]))
        return (z * before + (1 - z) * new,)

    def extra_repr(self) -> str:
        """Return the settings, for ``print``."""
        return f"{super().extra_repr()}, reset_after={self.reset_after}"
