"""Result objects as people read them: a report as a text tree, a capture as PNG.

Owns rendering for the command line and the web page. Needs the bytes only, and prints nothing of
the patient's header.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from types import MappingProxyType

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from dicom_io.errors import UnreadableInstance
from dicom_io.reading import PARSER_FAULTS, is_machine_fault, quiet_pydicom

_INDENT = "  "
_MAX_DEPTH = 64
_HEADLINES = ("SeriesDescription", "ContentDate", "ContentTime", "InstanceNumber")
_STATUS = ("CompletionFlag", "PreliminaryFlag", "VerificationFlag")


def report_text(data: bytes) -> str:
    """Return a Structured Report as an indented tree, one content item per line.

    Parameters
    ----------
    data : bytes
        A Part 10 file, ours or any other Structured Report.

    Raises
    ------
    UnreadableInstance
        When the bytes are not a DICOM file or hold no content tree.
    """
    with _reading("report"):
        ds = pydicom.dcmread(BytesIO(data))
        if "ValueType" not in ds:
            raise UnreadableInstance("the object holds no report: Value Type is absent")
        status = " ".join(str(ds[keyword].value) for keyword in _STATUS if keyword in ds)
        shown = [_shown(ds, keyword) for keyword in _HEADLINES if ds.get(keyword)]
        return "\n".join([*shown, f"Status: {status}", "", *_tree(ds, 0)]) + "\n"


def capture_png(data: bytes) -> bytes:
    """Return the image of a Secondary Capture as a PNG file.

    Raises
    ------
    UnreadableInstance
        When the bytes are not a DICOM file with one 8-bit RGB or greyscale image.
    """
    with _reading("capture"):
        pixels = pixel_array(BytesIO(data))
        if pixels.dtype != np.uint8 or pixels.ndim not in {2, 3}:
            raise UnreadableInstance(
                f"the capture must be one 8-bit image: received {pixels.dtype}, {pixels.shape}"
            )
        png = BytesIO()
        Image.fromarray(pixels).save(png, format="PNG", compress_level=6)
        return png.getvalue()


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        with quiet_pydicom():
            yield
    except (*PARSER_FAULTS, OSError) as error:
        if is_machine_fault(error):
            raise
        # The cause is dropped on purpose: parser messages quote values of the header.
        raise UnreadableInstance(
            f"the {what} cannot be read as DICOM: {type(error).__name__}"
        ) from None


def _shown(ds: Dataset, keyword: str) -> str:
    element = ds[keyword]
    return f"{element.name}: {element.value}"


def _tree(item: Dataset, depth: int) -> Iterator[str]:
    yield f"{_INDENT * depth}{_name(item)}{_rendered(item)}"
    if depth >= _MAX_DEPTH:
        yield f"{_INDENT * (depth + 1)}(deeper items are not shown)"
        return
    for child in item.get("ContentSequence") or ():
        yield from _tree(child, depth + 1)


def _name(item: Dataset) -> str:
    return _meaning(item, "ConceptNameCodeSequence") or str(item.get("ValueType", "item"))


def _rendered(item: Dataset) -> str:
    render = _RENDERERS.get(str(item.get("ValueType", "")))
    if render is None:
        return ""
    return f": {_one_line(render(item))}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _meaning(item: Dataset, keyword: str) -> str:
    sequence = item.get(keyword)
    return str(sequence[0].get("CodeMeaning", "")) if sequence else ""


def _attribute(keyword: str) -> Callable[[Dataset], str]:
    return lambda item: str(item.get(keyword, ""))


def _number(item: Dataset) -> str:
    measured = item.get("MeasuredValueSequence")
    if not measured:
        return "no value"
    unit = measured[0].get("MeasurementUnitsCodeSequence")
    symbol = str(unit[0].get("CodeValue", "")) if unit else ""
    return f"{measured[0].get('NumericValue', '')} {symbol}"


def _reference(item: Dataset) -> str:
    referenced = item.get("ReferencedSOPSequence")
    if not referenced:
        return "no reference"
    sop_class = referenced[0].get("ReferencedSOPClassUID")
    uid = referenced[0].get("ReferencedSOPInstanceUID", "")
    return f"{getattr(sop_class, 'name', sop_class)} {uid}"


_RENDERERS = MappingProxyType(
    {
        "CODE": lambda item: _meaning(item, "ConceptCodeSequence"),
        "TEXT": _attribute("TextValue"),
        "NUM": _number,
        "UIDREF": _attribute("UID"),
        "DATE": _attribute("Date"),
        "TIME": _attribute("Time"),
        "DATETIME": _attribute("DateTime"),
        "PNAME": lambda _item: "(a person)",
        "IMAGE": _reference,
        "COMPOSITE": _reference,
        "SCOORD": _attribute("GraphicType"),
        "SCOORD3D": _attribute("GraphicType"),
    }
)
