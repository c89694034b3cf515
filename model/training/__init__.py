"""Training: from labelled images to a model package.

Owns data reading, augmentation, networks, the loop and its run folder. The pixels pass through
``dicom_io.tensors``, the same steps as in service; of the daemon only its commands use it.
"""
