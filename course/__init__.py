"""The course: what only the notebooks, their tests and the project's DroNet use.

Importing this package, or any module of it, settles what would otherwise differ between machines: the Keras backend,
TensorFlow's messages and its choice of oneDNN kernels. So it must be imported before Keras. A variable that is already
set stays as it is.
"""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
