"""The same series read by others, SimpleITK and highdicom, and by us up to the modality values.

Each returns (slices, rows, columns) float32 in modality units, slices ascending along the normal.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import highdicom
import numpy as np
import numpy.typing as npt
import pydicom
import SimpleITK

from dicom_io.volume import assemble_volume

Values = npt.NDArray[np.float32]


def read_with_medimgd(paths: Sequence[Path]) -> Values:
    """Read with the steps of the tensor path, before anything is clipped or resampled."""
    return assemble_volume(paths).values


def read_with_simpleitk(paths: Sequence[Path]) -> Values:
    """Read with ITK's series reader, which finds, sorts, decodes and rescales."""
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(paths[0].parent)))
    reader.SetOutputPixelType(SimpleITK.sitkFloat32)
    values: Values = SimpleITK.GetArrayFromImage(reader.Execute())
    return values


def read_with_highdicom(paths: Sequence[Path]) -> Values:
    """Read with highdicom's volume of a series, which sorts, decodes and rescales."""
    datasets = [pydicom.dcmread(path) for path in paths]
    volume = highdicom.get_volume_from_series(datasets, dtype=np.float32)
    orientation = [float(each) for each in datasets[0].ImageOrientationPatient]
    normal = np.cross(orientation[:3], orientation[3:])
    ascends = float(normal @ volume.direction[:, 0]) > 0
    return volume.array if ascends else volume.array[::-1]


READERS = {
    "medimgd": read_with_medimgd,
    "SimpleITK": read_with_simpleitk,
    "highdicom": read_with_highdicom,
}
