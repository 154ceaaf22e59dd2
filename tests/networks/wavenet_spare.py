"""The WaveNet, with a twin whose last block has a convolution that nothing reads: many ports have it."""

from tests.networks import wavenet
from tests.networks.base import Network

from torch import nn

SPARE = f"blocks.{wavenet.BLOCKS - 1}.residual"


def twin() -> nn.Module:
    """Return the twin with the spare convolution."""
    return wavenet.Twin(spare=True)


NETWORK = Network(
    name="WaveNet with a spare convolution",
    keras_model=wavenet.keras_model,
    twin=twin,
    mistakes=wavenet.NETWORK.mistakes[:5],
    left_over=(SPARE,),
)
