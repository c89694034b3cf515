"""What the network knows: model packages, selection, inference and findings.

Owns TensorFlow and Keras. Knows nothing of databases or processes.
"""
