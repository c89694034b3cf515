"""Labelled images from folders, zips and CSV manifests: what is listed, and what is refused."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from dicom_io.tensors import TensorRecipe, build_image_tensor, image_values_to_tensor, read_film
from model.errors import TrainingDataFault
from model.training.csv_manifest import read_csv_manifest
from model.training.dataset import PatientSourceValues, SplitValues
from model.training.reading import read_image
from model.training.sources import open_dataset, split_named
from tests.labelled_images import grey, put_dicom, put_film

RECIPE = TensorRecipe.from_mapping({"kind": "image", "rows": 16, "columns": 16})


def listed(source: Path):
    with open_dataset(source) as dataset:
        return dataset


def manifest(folder: Path, *lines: str) -> Path:
    path = folder / "images.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def fault_of(source: Path) -> str:
    with pytest.raises(TrainingDataFault) as caught:
        listed(source)
    return str(caught.value)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    put_film(tmp_path / "train" / "NORMAL" / "IM-0001-0001.png", 0.2, 1)
    put_film(tmp_path / "train" / "PNEUMONIA" / "person1_virus_1.jpeg", 0.8, 2)
    put_film(tmp_path / "val" / "NORMAL" / "odd-name.png", 0.2, 3)
    put_dicom(tmp_path / "val" / "PNEUMONIA" / "film-without-suffix", grey(0.8, 4))
    return tmp_path


def test_images_of_class_folders_have_split_label_and_patient(folders):
    dataset = listed(folders)

    assert dataset.splits == (SplitValues.TRAIN, SplitValues.VALIDATION)
    assert dataset.classes == ("NORMAL", "PNEUMONIA")
    assert {image.name: (set(image.labels), image.patient) for image in dataset.images[:3]} == {
        "train/NORMAL/IM-0001-0001.png": ({"NORMAL"}, "IM-0001"),
        "train/PNEUMONIA/person1_virus_1.jpeg": ({"PNEUMONIA"}, "person1"),
        "val/NORMAL/odd-name.png": ({"NORMAL"}, ""),
    }
    assert dataset.class_counts(SplitValues.VALIDATION) == {"NORMAL": 1, "PNEUMONIA": 1}


def test_patient_of_a_header_is_compared_and_never_shown(folders):
    put_dicom(folders / "val" / "NORMAL" / "a.dcm", grey(0.2, 5), PatientID="MRN-4711")
    put_dicom(folders / "val" / "NORMAL" / "b.dcm", grey(0.2, 6), PatientID="MRN-4711")

    images = [i for i in listed(folders).images if i.name.endswith(("a.dcm", "b.dcm"))]

    assert [i.patient_source for i in images] == [PatientSourceValues.HEADER] * 2
    assert images[0].patient == images[1].patient != ""
    assert "4711" not in images[0].patient


def test_what_is_no_image_by_its_contents_is_a_stray_whatever_its_name(folders):
    (folders / "train" / "NORMAL" / "notes.png").write_text("no picture")

    assert listed(folders).strays == ("train/NORMAL/notes.png",)


def test_folder_in_place_of_an_image_is_one_series(folders):
    series = folders / "train" / "NORMAL" / "series-1"
    for number in range(3):
        put_dicom(series / f"{number}.dcm", grey(0.2, 10 + number))
    (series / "readme.txt").write_text("text")

    dataset = listed(folders)

    (image,) = [image for image in dataset.images if image.is_series]
    assert (image.name, len(image.files)) == ("train/NORMAL/series-1", 3)
    assert dataset.strays == ("train/NORMAL/series-1/readme.txt",)


def test_zip_is_listed_as_its_folder_is(folders, tmp_path_factory):
    archive = tmp_path_factory.mktemp("zip") / "films.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in folders.rglob("*"):
            target.write(path, path.relative_to(folders))

    names = [image.name for image in listed(archive).images]

    assert names == [image.name for image in listed(folders).images]


def test_tensors_are_those_of_the_service(folders):
    for image in listed(folders).images:
        (path,) = image.files
        expected = (
            build_image_tensor(path, RECIPE).values
            if image.is_dicom
            else image_values_to_tensor(read_film(path), RECIPE)
        )
        np.testing.assert_array_equal(read_image(image, RECIPE), expected)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda f: None, "holds none of the folders train/, validation/, test/"),
        (lambda f: (f / "train").mkdir(), "train: holds no class folder"),
        (lambda f: (f / "train" / "A").mkdir(parents=True), "train/A: a class folder without"),
    ],
)
def test_folder_that_is_no_data_set_says_what_is_missing(tmp_path, make, words):
    make(tmp_path)

    assert words in fault_of(tmp_path)


def test_file_of_another_kind_is_no_source(tmp_path):
    path = tmp_path / "data.tar"
    path.write_bytes(b"tar")

    assert "must be a folder, a .zip or a .csv manifest" in fault_of(path)


def test_zip_cut_short_is_no_source(folders, tmp_path_factory):
    archive = tmp_path_factory.mktemp("zip") / "films.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for path in folders.rglob("*.png"):
            target.write(path, path.relative_to(folders))
    archive.write_bytes(archive.read_bytes()[:-60])

    assert "films.zip: is no complete zip archive" in fault_of(archive)


def test_manifest_gives_labels_split_patient_and_further_columns(tmp_path):
    put_film(tmp_path / "a.png", 0.2, 1)
    put_film(tmp_path / "b.png", 0.8, 2)
    path = manifest(
        tmp_path,
        "path,labels,split,patient,Sex,site",
        "a.png,none,test,P1,F,north",
        "b.png,Effusion; Nodule,test,P2,M,",
    )

    dataset = listed(path)

    first, second = dataset.images
    assert (first.labels, first.patient, first.columns["Sex"]) == (frozenset(), "P1", "F")
    assert second.labels == {"Effusion", "Nodule"}
    assert dataset.classes == ("Effusion", "Nodule")
    assert dataset.columns == ("Sex", "site")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_manifest_may_be_separated_otherwise_and_begin_with_a_byte_order_mark(tmp_path, separator):
    put_film(tmp_path / "a.png", 0.2, 1)
    path = tmp_path / "images.csv"
    text = (
        separator.join(("path", "label", "split"))
        + "\r\n"
        + separator.join(("a.png", "A|B", "val"))
    )
    path.write_text(text, encoding="utf-8-sig", newline="")

    (image,) = listed(path).images

    assert (image.labels, image.split) == ({"A", "B"}, SplitValues.VALIDATION)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["path,labels"], "line 1: column split is missing; the columns are path, labels"),
        (["path,labels,split,path"], "line 1: column path appears twice"),
        (["path,labels,split", "a.png,A"], "line 2: has 2 cells, the heading 3"),
        (["path,labels,split", "b.png,A,test"], "line 2, column path: there is no b.png"),
        (["path,labels,split", ",A,test"], "line 2, column path: is empty"),
        (["path,labels,split", "", "a.png,,test"], "line 3, column labels: is empty"),
        (["path,labels,split", "a.png,none;A,test"], "line 2, column labels: is 'none;A'"),
        (["path,labels,split", "a.png,A,tset"], "line 2, column split: must be one of train"),
        (["path,labels,split"], "holds a heading line only"),
    ],
)
def test_fault_in_a_manifest_is_named_by_line_and_column(tmp_path, lines, words):
    put_film(tmp_path / "a.png", 0.2, 1)

    assert words in fault_of(manifest(tmp_path, *lines))


def test_all_faults_of_a_manifest_are_named_at_once(tmp_path):
    path = manifest(tmp_path, "path,labels,split", "a.png,,dev", "b.png,A,test")

    fault = fault_of(path)

    assert fault.count("line 2") == 3
    assert "line 3, column path" in fault


def test_manifest_that_is_not_utf_8_names_the_line(tmp_path):
    path = tmp_path / "images.csv"
    path.write_bytes("path,labels,split\nä.png,A,test\n".encode("latin-1"))

    assert "line 2: is not UTF-8" in fault_of(path)


def test_cells_in_quotes_may_span_lines_and_the_number_stays_right(tmp_path):
    put_film(tmp_path / "a.png", 0.2, 1)
    path = manifest(tmp_path, "path,labels,split,note", 'a.png,A,test,"one\ntwo"', "b.png,A,test,")

    with pytest.raises(TrainingDataFault, match="line 4, column path"):
        read_csv_manifest(path)


@pytest.mark.parametrize(("name", "split"), [("val", "validation"), ("Test", "test")])
def test_split_is_known_by_the_names_people_use(name, split):
    assert split_named(name) == split


def test_unknown_split_is_refused():
    with pytest.raises(TrainingDataFault, match="must be one of train, validation, test"):
        split_named("holdout")
