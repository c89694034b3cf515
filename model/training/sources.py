"""Where labelled images come from: class folders, a zip of them, or a CSV manifest.

Owns finding and naming the images and whose they are. Decodes nothing: ``inspection`` and
``reading`` do.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dicom_io.errors import UnreadableInstance
from dicom_io.header import read_attributes
from dicom_io.image_files import FileKindValues, file_kind
from model.errors import TrainingDataFault
from model.training.csv_manifest import read_csv_manifest
from model.training.dataset import (
    SPLIT_NAMES,
    Dataset,
    LabelledImage,
    PatientSourceValues,
    SplitValues,
)
from model.training.patients import patient_key

_KEY_DIGITS = 16


@contextlib.contextmanager
def open_dataset(source: Path) -> Iterator[Dataset]:
    """Yield the images of a folder, a zip or a CSV manifest; a zip is unpacked for the while.

    Parameters
    ----------
    source : Path
        A folder (or a zip) with ``train/<class>/``, ``validation/<class>/`` or ``test/<class>/``,
        any of them; or a file that ends in ``.csv``, see ``read_csv_manifest``. Images are PNG,
        JPEG or DICOM files, known by their contents; a folder in place of an image is one series.

    Raises
    ------
    TrainingDataFault
        There is no such source, no split in it, or a class without any file.
    """
    if not source.exists():
        raise TrainingDataFault(f"{source}: there is no such folder or file")
    if source.suffix.lower() == ".csv":
        yield _from_manifest(source)
        return
    with _unpacked(source) as folder:
        yield _from_folders(folder)


@contextlib.contextmanager
def opened(source: Path) -> Iterator[Path]:
    """Yield a folder with the splits: `source` itself, or a zip unpacked for the while."""
    if source.is_dir():
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="medimgd-films-") as folder:
        with zipfile.ZipFile(source) as archive:
            archive.extractall(folder)
        yield Path(folder)


@contextlib.contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    if source.is_file() and source.suffix.lower() != ".zip":
        raise TrainingDataFault(
            f"{source.name}: must be a folder, a .zip or a .csv manifest; it is a file of "
            f"another kind"
        )
    if source.is_file() and not zipfile.is_zipfile(source):
        raise TrainingDataFault(
            f"{source.name}: is no complete zip archive; fetch it again, or unpack it and name "
            f"the folder"
        )
    with opened(source) as folder:
        yield folder


def split_named(name: str) -> SplitValues:
    """Return the split that a person means by a name.

    Raises
    ------
    TrainingDataFault
        It names none.
    """
    split = SPLIT_NAMES.get(name.strip().casefold())
    if split is None:
        raise TrainingDataFault(f"split: must be one of {', '.join(SplitValues)}; got {name!r}")
    return split


def _from_folders(root: Path) -> Dataset:
    found = [
        (path, split, place.name)
        for split_folder, split in _split_folders(root)
        for place in _class_folders(split_folder)
        for path in sorted(_visible(place))
    ]
    images: list[LabelledImage] = []
    strays: list[str] = []
    for path, split, label in found:
        name = path.relative_to(root).as_posix()
        image = _image(path, name, split, frozenset({label}))
        strays.extend(_strays(path, name, image))
        images.extend([image] if image is not None else [])
    if not images:
        raise TrainingDataFault(f"{root.name}: holds no PNG, JPEG or DICOM file in a class folder")
    classes = sorted({label for _, _, label in found})
    return Dataset(tuple(images), tuple(classes), strays=tuple(strays))


def _split_folders(root: Path) -> list[tuple[Path, SplitValues]]:
    folders = [
        (folder, SPLIT_NAMES[folder.name.casefold()])
        for folder in sorted(_visible(root))
        if folder.is_dir() and folder.name.casefold() in SPLIT_NAMES
    ]
    if not folders:
        raise TrainingDataFault(
            f"{root.name}: holds none of the folders {', '.join(f'{s}/' for s in SplitValues)}; "
            f"put the images into <split>/<class>/, or name a .csv manifest"
        )
    order = list(SplitValues)
    return sorted(folders, key=lambda pair: order.index(pair[1]))


def _class_folders(split_folder: Path) -> list[Path]:
    places = [place for place in sorted(_visible(split_folder)) if place.is_dir()]
    if not places:
        raise TrainingDataFault(
            f"{split_folder.name}: holds no class folder; put the images into "
            f"{split_folder.name}/<class>/"
        )
    empty = [f"{split_folder.name}/{place.name}" for place in places if not any(_visible(place))]
    if empty:
        raise TrainingDataFault(
            f"{', '.join(empty)}: a class folder without images; fill it or remove it"
        )
    return places


def _visible(folder: Path) -> Iterator[Path]:
    """Yield what a folder holds without hidden files and what macOS leaves in archives."""
    return (p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def _from_manifest(path: Path) -> Dataset:
    lines, columns = read_csv_manifest(path)
    images: list[LabelledImage] = []
    strays: list[str] = []
    for line in lines:
        image = _image(line.path, line.name, line.split, line.labels, line.patient, line.columns)
        strays.extend(_strays(line.path, line.name, image))
        images.extend([image] if image is not None else [])
    if not images:
        raise TrainingDataFault(f"{path.name}: names no PNG, JPEG or DICOM file")
    classes = sorted({label for line in lines for label in line.labels})
    return Dataset(tuple(images), tuple(classes), columns, tuple(strays))


def _image(
    path: Path,
    name: str,
    split: SplitValues,
    labels: frozenset[str],
    patient: str = "",
    columns: Mapping[str, str] | None = None,
) -> LabelledImage | None:
    """Return the record of one image or series; None when it holds no image."""
    files = tuple(_image_files(path))
    if not files:
        return None
    is_dicom = file_kind(files[0]) is FileKindValues.DICOM
    key, key_source = _patient(files[0], patient, is_dicom=is_dicom)
    return LabelledImage(
        name=name,
        files=files,
        split=split,
        labels=labels,
        patient=key,
        patient_source=key_source,
        columns=dict(columns or {}),
        is_dicom=is_dicom,
        is_series=path.is_dir(),
    )


def _image_files(path: Path) -> Iterable[Path]:
    """Return the file itself, or the DICOM files of a series folder."""
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        return [file for file in files if file_kind(file) is FileKindValues.DICOM]
    return [path] if file_kind(path) is not FileKindValues.OTHER else []


def _strays(path: Path, name: str, image: LabelledImage | None) -> list[str]:
    """Return the names of what is no image at this place."""
    if not path.is_dir():
        return [name] if image is None else []
    used = set(image.files) if image is not None else set()
    files = [file for file in sorted(path.rglob("*")) if file.is_file() and file not in used]
    strays = [f"{name}/{file.relative_to(path).as_posix()}" for file in files]
    return strays if files or image is not None else [name]


def _patient(file: Path, stated: str, *, is_dicom: bool) -> tuple[str, PatientSourceValues]:
    """Return who the patient is: as the manifest says, else the header, else the file name."""
    if stated:
        return stated, PatientSourceValues.MANIFEST
    if is_dicom:
        key = _patient_of_header(file)
        if key:
            return key, PatientSourceValues.HEADER
    from_name = patient_key(file.name)
    if from_name != file.stem:
        return from_name, PatientSourceValues.FILE_NAME
    return "", PatientSourceValues.UNKNOWN


def _patient_of_header(file: Path) -> str:
    """Return a digest of PatientID: the key is compared and never shown."""
    try:
        found = read_attributes(file, ["PatientID", "IssuerOfPatientID"])
    except UnreadableInstance:
        return ""
    patient_id = found["PatientID"]
    if not patient_id:
        return ""
    whole = f"{patient_id}\\{found['IssuerOfPatientID'] or ''}"
    return hashlib.sha256(whole.encode()).hexdigest()[:_KEY_DIGITS]
