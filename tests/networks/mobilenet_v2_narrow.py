"""MobileNetV2 at a third of its width and for small images: quick enough for every run."""

import functools

from tests.networks.base import Network
from tests.networks.mobilenet_v2 import MISTAKES, MobileNetV2, mobilenet

QUICK = {"features.0", "features.2", "features.3", "features.5", "features.9", "classifier"}

NETWORK = Network(
    name="MobileNetV2, narrow",
    keras_model=functools.partial(mobilenet, 0.35, 64, 40),
    twin=functools.partial(MobileNetV2, 0.35),
    mistakes=tuple(mistake for mistake in MISTAKES if mistake.name.split(":")[0] in QUICK),
)
