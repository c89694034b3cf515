"""One labelled image as the tensor a model reads, by the daemon's own steps.

Owns the choice between a DICOM file, a film without a header and a series. The pixels are
``dicom_io.tensors``'; nothing here may touch their values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dicom_io.errors import OutsideContract
from dicom_io.tensors import (
    TensorRecipe,
    build_image_tensor,
    build_volume_tensor,
    image_values_to_tensor,
    read_film,
)
from model.training.dataset import LabelledImage


def read_image(image: LabelledImage, recipe: TensorRecipe) -> npt.NDArray[np.float32]:
    """Return the tensor of one image or series.

    Returns
    -------
    ndarray
        (rows, columns, channels) or (slices, rows, columns, channels), float32 in [0, 1].

    Raises
    ------
    UnreadableInstance, Refusal
        It cannot be parsed or decoded, is blank, or is of the other kind than the recipe.
    InstanceUnavailable
        A file cannot be read now.
    """
    if recipe.kind == "volume":
        if not image.is_dicom:
            raise OutsideContract("the model reads volumes: a PNG or JPEG has no slices")
        return build_volume_tensor(image.files, recipe).values
    if len(image.files) != 1:
        raise OutsideContract(f"the model reads one image: received {len(image.files)} instances")
    if image.is_dicom:
        return build_image_tensor(image.files[0], recipe).values
    return image_values_to_tensor(read_film(image.files[0]), recipe)
