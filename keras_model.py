"""DroNet in Keras: the network that steers a drone, as its authors published it.

The architecture is that of ``model_struct.json`` in https://github.com/uzh-rpg/rpg_public_dronet (A. Loquercio et al.,
"DroNet: Learning to Fly by Driving", 2018, https://doi.org/10.1109/LRA.2018.2795643), written for Keras 3.
"""

import course  # noqa: F401  settles the Keras backend before Keras is imported

import keras
from keras import layers, regularizers


def _convolution(x, number: int, filters: int, kernel_size: int, strides: int, l2: float | None = None):
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        kernel_initializer="glorot_uniform" if l2 is None else "he_normal",
        kernel_regularizer=None if l2 is None else regularizers.L2(l2),
        name=f"conv2d_{number}",
    )(x)


def _normalized(x, number: int):
    x = layers.BatchNormalization(name=f"batch_normalization_{number}")(x)
    return layers.Activation("relu", name=f"activation_{number}")(x)


def _residual_block(x, number: int, filters: int):
    main = _normalized(x, 2 * number - 1)
    main = _convolution(main, 3 * number - 1, filters, 3, strides=2, l2=1e-4)
    main = _normalized(main, 2 * number)
    main = _convolution(main, 3 * number, filters, 3, strides=1, l2=1e-4)
    shortcut = _convolution(x, 3 * number + 1, filters, 1, strides=2)
    return layers.Add(name=f"add_{number}")([shortcut, main])


def resnet8(img_width: int, img_height: int, img_channels: int, output_dim: int) -> keras.Model:
    """Build DroNet, a ResNet-8 with one head for the steering angle and one for the probability of a collision.

    Every layer is named as in the official weight file, so that weights can be loaded by name. The sigmoid is an
    ``Activation`` layer of its own, as in the official model: loading by position depends on it.

    Args:
        img_width: Width of the images, in pixels.
        img_height: Height of the images, in pixels.
        img_channels: Number of channels of the images.
        output_dim: Number of values of each head.

    Returns:
        A model from images of shape (batch, img_height, img_width, img_channels), with values in [0, 1], to the list
        [steering, collision], each of shape (batch, output_dim).
    """
    images = keras.Input((img_height, img_width, img_channels), name="input_1")
    x = _convolution(images, 1, 32, 5, strides=2)
    x = layers.MaxPooling2D(3, strides=2, name="max_pooling2d_1")(x)
    for number, filters in enumerate((32, 64, 128), start=1):
        x = _residual_block(x, number, filters)
    x = layers.Flatten(name="flatten_1")(x)
    x = layers.Activation("relu", name="activation_7")(x)
    x = layers.Dropout(0.5, name="dropout_1")(x)
    steering = layers.Dense(output_dim, name="dense_1")(x)
    collision = layers.Dense(output_dim, name="dense_2")(x)
    collision = layers.Activation("sigmoid", name="activation_8")(collision)
    return keras.Model(images, [steering, collision], name="resnet8")


def with_logits(model: keras.Model) -> keras.Model:
    """Return DroNet with the collision before the sigmoid, which hides differences where it is saturated.

    Args:
        model: What ``resnet8`` returned. It shares its layers and weights with the result.

    Returns:
        A model from images to the list [steering, logit of the collision]. Do not copy weights between it and
        ``model`` by position: without the sigmoid at its end, ``dense_1`` comes before ``dense_2``.
    """
    return keras.Model(model.input, [model.get_layer("dense_1").output, model.get_layer("dense_2").output])
