"""DICOM files among the images that a bundle predicts, and what it answers in DICOM."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from sonobreast.data.dicom import as_rgb, read_dicom
from sonobreast.data.dicom_phantom import write_dicom as write_phantom
from sonobreast.data.phantom import simulate
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.dicom_answers import comments
from sonobreast.serving.inference import infer, problems_file
from sonobreast.serving.predictor import Predictor, load_predictor


@pytest.fixture(scope="module")
def predictor(ensemble: Bundle) -> Predictor:
    return load_predictor(ensemble)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dicom") / "scan.dcm"
    write_phantom(path, simulate(2, seed=0))
    return path


def test_a_dicom_file_says_what_its_region_says_as_a_picture(predictor: Predictor, file: Path, tmp_path: Path) -> None:
    image = read_dicom(file)
    Image.fromarray(as_rgb(image.frames[0])).save(tmp_path / "region.png")
    one, other = predictor.predict(file), predictor.predict(tmp_path / "region.png")
    np.testing.assert_allclose(one.probability, other.probability, atol=1e-12)
    assert (one.height, one.width) == image.frames[0].shape[:2]
    assert image.spacing_mm is not None
    if one.lesion is not None and one.lesion.diameter_px > 0:
        assert one.lesion.diameter_mm == pytest.approx(one.lesion.diameter_px * image.spacing_mm[0], rel=0.01)


def test_predict_writes_report_and_segmentation(predictor: Predictor, file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mixed tree"
    folder.mkdir()
    (folder / "a.dcm").write_bytes(file.read_bytes())
    (folder / "broken.dcm").write_bytes(file.read_bytes()[:2000])
    Image.fromarray(as_rgb(read_dicom(file).frames[0])).save(folder / "b.png")
    outcome = infer(predictor, [folder], tmp_path / "inference.csv", dicom_out=tmp_path / "dicom")
    assert (outcome.files, outcome.predicted, outcome.problems) == (3, 2, 1)
    rows = {Path(r["file"]).name: r for r in csv.DictReader((tmp_path / "inference.csv").open())}
    assert set(rows) == {"a.dcm", "b.png"}
    assert rows["a.dcm"]["p_malignant"] == rows["b.png"]["p_malignant"]
    assert float(rows["a.dcm"]["spacing_mm"]) > 0
    assert rows["b.png"]["spacing_mm"] == ""
    [report] = (tmp_path / "dicom").glob("*-report.dcm")
    source, written = pydicom.dcmread(file), pydicom.dcmread(report)
    assert written.Modality == "SR"
    assert written.StudyInstanceUID == source.StudyInstanceUID
    text = problems_file(tmp_path / "inference.csv").read_text()
    assert "broken.dcm" in text
    assert str(source.PatientName) not in text


def test_a_second_call_leaves_the_answers(predictor: Predictor, file: Path, tmp_path: Path) -> None:
    infer(predictor, [file], tmp_path / "one.csv", dicom_out=tmp_path / "dicom")
    before = {p.name: p.read_bytes() for p in (tmp_path / "dicom").iterdir()}
    outcome = infer(predictor, [file], tmp_path / "two.csv", dicom_out=tmp_path / "dicom")
    assert (outcome.predicted, outcome.problems) == (1, 0)
    assert {p.name: p.read_bytes() for p in (tmp_path / "dicom").iterdir()} == before


def test_what_is_said_beside_the_probabilities(predictor: Predictor, file: Path) -> None:
    found = predictor.predict(file)
    told = comments(replace(found, in_domain=False, conformal=("benign", "malignant"), malignant=True, threshold=0.2))
    assert any("unlike the training images" in t for t in told)
    assert any("abstains" in t and "benign, malignant" in t for t in told)
    assert any("at or above" in t for t in told)
    assert comments(replace(found, in_domain=True, conformal=("benign",), malignant=None, threshold=None)) == []
