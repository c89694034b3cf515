"""DICOM in, tensors, DICOM out: the language every other package speaks.

Owns pydicom, pynetdicom and highdicom. Knows nothing of databases, models or processes.
"""
