"""The precision that models are made in: float64 shows a mistake that rounding in float32 would hide."""

import keras
import torch


def use_float64() -> None:
    """Let both frameworks make layers, inputs and tensors in float64 from now on; what exists already stays as it is.

    This holds for Keras on TensorFlow. On other backends Keras 3 computes parts of some layers in float32 all the same.

    In float64 a right port agrees with Keras within about 1e-12, so that even a small mistake stands out. Three
    settings are needed, and a framework goes on in float32, without a word, if one is left out: Keras's ``floatx``,
    which is the dtype of a ``keras.Input``; Keras's dtype policy, which is that of the layers, and which does not
    follow ``floatx`` any more once a layer has been made; and PyTorch's default dtype, for modules and new tensors.

    Make a model that exists already, such as one that was loaded, anew after this call, and give it the weights of the
    old one with ``set_weights``. A PyTorch module can be changed: ``module.double()``.
    """
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    torch.set_default_dtype(torch.float64)
