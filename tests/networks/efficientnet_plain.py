"""EfficientNetB0 of ``keras.applications`` from its first padding on, for images that are normalized already."""

from tests.networks.base import Network
from tests.networks.efficientnet import SHARED, EfficientNet
from tests.networks.images import SIZE, calibrated, images

import keras
import numpy as np


def keras_model() -> tuple[keras.Model, list[np.ndarray]]:
    """Return the Keras model, and two images."""
    whole = keras.applications.EfficientNetB0(
        weights=None, input_shape=(*SIZE, 3), classes=10, classifier_activation=None, name="efficientnet"
    )
    model = keras.Model(whole.get_layer("stem_conv_pad").input, whole.output, name="efficientnet_plain")
    return calibrated(model, images(), 6)


NETWORK = Network(
    name="EfficientNetB0 without preprocessing",
    keras_model=keras_model,
    twin=EfficientNet,
    mistakes=SHARED,
    slow=True,
)
