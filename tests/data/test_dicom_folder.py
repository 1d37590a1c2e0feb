"""Folders and tables of DICOM files as data sets: what comes into the manifest, and what never does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.dicom_files import KEY, SECRETS, save, verify

from sonobreast.config import Preprocess
from sonobreast.data import manifest as manifests
from sonobreast.data.dicom import decode_rgb
from sonobreast.data.dicom_phantom import dicom_dataset, write_dicom
from sonobreast.data.groups import pictures
from sonobreast.data.phantom import simulate
from sonobreast.data.preprocess import decode, resize
from sonobreast.data.pseudonym import pseudonym
from sonobreast.data.store import open_store
from sonobreast.errors import SonobreastError
from sonobreast.records import Problem

pytest.importorskip("pydicom", reason="needs sonobreast[dicom]")

KNOWN = {"P0001", "P0002", "P0003", "P0004", "P0005", "2000-01-01", *SECRETS}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SONOBREAST_PSEUDONYM_KEY", KEY.decode())


def write(path: Path, index: int, *, n_frames: int = 1, **attributes: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = dicom_dataset(simulate(index, seed=1, size=64), n_frames=n_frames)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return save(ds, path)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Class folders as a person and as a PACS fill them: beside each other, nested, and without endings."""
    root = tmp_path / "set"
    write(root / "benign" / "a.dcm", 0, PatientID="MRN-7001")
    write(root / "benign" / "b.dcm", 1, PatientID="MRN-7001")
    write(root / "malignant" / "CASE1" / "SERIES1" / "IM000001", 2, PatientID="MRN-7002")
    write(root / "malignant" / "CASE2" / "SERIES1" / "IM000001", 3, PatientID="MRN-7003", n_frames=7)
    (root / "malignant" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    return root


def codes(problems: tuple[Problem, ...]) -> dict[str, str]:
    return {p.code: p.file for p in problems}


def test_class_folders_with_nested_series(folders: Path) -> None:
    found = manifests.build(folders, strict=True)
    cases = {c.image: c for c in found.cases}
    assert sorted(cases) == [
        "benign/a.dcm",
        "benign/b.dcm",
        "malignant/CASE1/SERIES1/IM000001",
        "malignant/CASE2/SERIES1/IM000001",
    ]
    assert [c.label for c in found.cases] == ["benign", "benign", "malignant", "malignant"]
    first, second = cases["benign/a.dcm"], cases["benign/b.dcm"]
    assert first.patient == first.group == second.group == pseudonym("patient", "MRN-7001", KEY)
    assert first.spacing_mm == pytest.approx(simulate(0, seed=1, size=64).spacing_mm, abs=1e-6)
    assert (first.width, first.height) == (64, 64)
    assert first.extra["device"] == "sonobreast Simulated B-mode"
    assert first.extra["study"].startswith("study-")
    clip = cases["malignant/CASE2/SERIES1/IM000001"]
    assert clip.extra["frame"] == "4 of 7"
    assert codes(found.problems) == {"dicom-clip": clip.image}


def test_nothing_in_the_manifest_names_a_patient_and_it_reads_back_the_same(folders: Path, tmp_path: Path) -> None:
    table = tmp_path / "out" / "manifest.csv"
    table.parent.mkdir()
    first = manifests.build(folders)
    manifests.write(table, first)
    text = table.read_text() + (table.parent / "problems.csv").read_text()
    assert not any(name in text for name in ("MRN-7001", "MRN-7002", "MRN-7003", *KNOWN))
    again = manifests.build(table)
    assert again.fingerprint == first.fingerprint
    assert [c.patient for c in again.cases] == [c.patient for c in first.cases]
    assert [c.extra for c in again.cases] == [c.extra for c in first.cases]


def test_a_table_goes_before_the_header_and_its_patients_are_hashed_too(folders: Path) -> None:
    (folders / "labels.csv").write_text(
        "image,label,patient,group,spacing_mm\n"
        "benign/a.dcm,benign,MRN-7001,MRN-7001,\n"
        "benign/b.dcm,normal,,ward 3,0.25\n"
        "malignant/CASE1/SERIES1/IM000001,malignant,MRN-7009,,\n"
    )
    one, two, three = manifests.build(folders / "labels.csv").cases
    assert one.patient == one.group == two.patient == pseudonym("patient", "MRN-7001", KEY)
    assert (two.group, two.spacing_mm, two.label) == (pseudonym("group", "ward 3", KEY), 0.25, "normal")
    assert three.patient == pseudonym("patient", "MRN-7009", KEY)


def test_what_is_no_b_mode_is_named_and_the_rest_goes_on(folders: Path) -> None:
    write(folders / "benign" / "mammogram.dcm", 4, Modality="MG")
    report = write(folders / "benign" / "cut.dcm", 5)
    report.write_bytes(report.read_bytes()[:-999])
    write(folders / "benign" / "nobody.dcm", 6, PatientID="ANONYMOUS")
    found = manifests.build(folders)
    assert len(found.cases) == 5
    problems = {p.file: p for p in found.problems}
    assert "not US" in problems["benign/mammogram.dcm"].what
    assert "ultrasound series" in problems["benign/mammogram.dcm"].remedy
    assert "end too early" in problems["benign/cut.dcm"].what
    assert problems["benign/nobody.dcm"].code == "dicom-no-patient"
    nobody = next(c for c in found.cases if c.image == "benign/nobody.dcm")
    assert (nobody.patient, nobody.group) == ("", nobody.image)
    with pytest.raises(SonobreastError, match="--strict"):
        manifests.build(folders, strict=True)


def test_oblong_pixels_have_no_single_spacing(tmp_path: Path) -> None:
    ds = dicom_dataset(simulate(0, seed=1, size=64))
    ds.SequenceOfUltrasoundRegions[0].PhysicalDeltaX *= 2
    (tmp_path / "benign").mkdir()
    save(ds, tmp_path / "benign" / "a.dcm")
    found = manifests.build(tmp_path)
    assert found.cases[0].spacing_mm is None
    assert "dicom-oblong-pixels" in codes(found.problems)


def test_every_reader_sees_the_same_pixels(folders: Path, tmp_path: Path) -> None:
    found = manifests.build(folders)
    settings = Preprocess(size=64)
    paths = [found.path(c) for c in found.cases]
    pixels = open_store(paths, [c.sha256 for c in found.cases], settings, folder=tmp_path / "store")
    for i, path in enumerate(paths):
        image = decode(path)
        assert np.array_equal(image, decode_rgb(path.read_bytes()))
        assert np.array_equal(pixels[i], resize(image, settings))
        assert np.array_equal(next(iter(pictures(found, [i]))), image)
    assert np.array_equal(decode(paths[0])[..., 0], simulate(0, seed=1, size=64).image)
    changed = replace(found, cases=found.cases[:1])
    paths[0].write_bytes(paths[1].read_bytes())
    with pytest.raises(SonobreastError, match="changed since"):
        open_store([changed.path(found.cases[0])], [found.cases[0].sha256], settings, folder=tmp_path / "other")


def test_a_mask_beside_a_file_is_paired(folders: Path) -> None:
    from PIL import Image

    Image.fromarray(simulate(0, seed=1, size=64).mask).save(folders / "benign" / "a_mask.png")
    found = manifests.build(folders)
    assert found.cases[0].masks == ("benign/a_mask.png",)


def test_the_simulated_file_is_valid_and_the_command_writes_it(tmp_path: Path) -> None:
    from sonobreast.cli import app

    file = tmp_path / "simulated.dcm"
    call = ["data", "phantom", str(tmp_path / "set"), "--n", "3", "--size", "64", "--seed", "1", "--dicom", str(file)]
    app(call, standalone_mode=False)
    verify(file)
    assert np.array_equal(decode(file)[..., 0], simulate(0, seed=1, size=64).image)
    clip = write(tmp_path / "clip.dcm", 0, n_frames=3)
    verify(clip)
    with pytest.raises(SonobreastError, match="cannot write"):
        write_dicom(tmp_path / "none" / "a.dcm", simulate(0, seed=1, size=64))
