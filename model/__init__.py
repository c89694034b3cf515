"""What the network knows: model packages, selection, inference and findings.

Owns TensorFlow and Keras, and that the one computes for the other. Knows nothing of databases or
processes.
"""

import os

# Before any module imports Keras, which may be told otherwise by the user's own settings.
os.environ["KERAS_BACKEND"] = "tensorflow"
