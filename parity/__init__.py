"""Move a model from Keras to PyTorch without changing what it computes.

Importing this package settles, before TensorFlow is loaded, what would otherwise differ between machines: the Keras
backend, TensorFlow's messages and its choice of oneDNN kernels. A variable that is already set stays as it is.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
