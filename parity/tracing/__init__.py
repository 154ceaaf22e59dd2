"""Where a Keras model and its twin part."""
