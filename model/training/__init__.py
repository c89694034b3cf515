"""Training scripts: from labelled images to a model package.

Owns data reading, augmentation, networks and measurement. The pixels pass through
``dicom_io.tensors``, the same steps as in service; nothing here is imported by the daemon.
"""
