"""DICOM out: valid by dciodvfy, read back by highdicom, and the patient in the files only."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import dicom_files as files
from tests.dicom_files import KEY, compressed, content, dataset, phantom, verify

from sonobreast.data.dicom import read_dicom
from sonobreast.errors import SonobreastError
from sonobreast.serving.dicom_codes import Algorithm
from sonobreast.serving.dicom_out import RESEARCH_USE, Finding, Written, write_dicom
from sonobreast.serving.lesion import measure

pytest.importorskip("highdicom", reason="needs sonobreast[dicom]")

ALGORITHM = Algorithm("joint:MobileNetV2", "2026.1", ("calibration: temperature 1.3",))
PROBABILITIES = {"benign": 0.2, "malignant": 0.7, "normal": 0.1}


def finding(**options: Any) -> Finding:
    return Finding(PROBABILITIES, **{"mask": phantom().mask, **options})


def read_back(path: Path) -> Any:
    from pydicom import dcmread

    return dcmread(path)


def group_of(written: Written) -> Any:
    import highdicom as hd

    report = hd.sr.srread(written.report).content
    groups = [*report.get_planar_roi_measurement_groups(), *report.get_image_measurement_groups()]
    assert len(groups) == 1
    return groups[0]


def texts(node: Any) -> list[str]:
    found = [str(node.TextValue)] if "TextValue" in node else []
    return found + [t for child in node.get("ContentSequence", ()) for t in texts(child)]


def all_valid(written: Written) -> None:
    for path in (written.report, written.segmentation, written.image):
        if path is not None:
            verify(path)


def test_a_single_image(tmp_path: Path) -> None:
    import highdicom as hd

    source = dataset()
    written = write_dicom(content(source), tmp_path / "out", finding(comments=("Outside of the range.",)), ALGORITHM)
    all_valid(written)
    assert written.image is None
    assert written.notes == ()
    assert written.segmentation is not None
    segmentation = hd.seg.segread(written.segmentation)
    whole = segmentation.pixel_array.squeeze().astype(bool)
    assert whole.shape == (source.Rows, source.Columns)
    assert np.array_equal(whole[48:, :96], phantom().mask)
    assert whole.sum() == phantom().mask.sum()
    assert segmentation.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    group = group_of(written)
    values = {m.name.meaning: (m.value, m.unit.value) for m in group.get_measurements()}
    assert values == {
        "Long Axis": (round(written.long_axis_mm or 0, 1), "mm"),
        "Probability of cancer": (70.0, "%"),
        "Probability of class benign": (20.0, "%"),
        "Probability of class normal": (10.0, "%"),
    }
    assert written.long_axis_mm == pytest.approx(measure(phantom().mask, phantom().spacing_mm).diameter_mm)
    assert group.finding_type.meaning == "Lesion"
    assert [e.value.meaning for e in group.get_qualitative_evaluations()] == ["Malignant"]
    report = read_back(written.report)
    said = texts(report)
    assert said[-2:] == [RESEARCH_USE, "Outside of the range."]
    assert {"joint:MobileNetV2", "2026.1", "calibration: temperature 1.3", "research use only"} <= set(said)
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    for output in (report, segmentation):
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
            assert output[keyword].value == source[keyword].value
        assert output.SeriesInstanceUID != source.SeriesInstanceUID
    referred = {
        item.ReferencedSOPInstanceUID
        for sequence in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in report.get(sequence, ())
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert referred == {source.SOPInstanceUID, segmentation.SOPInstanceUID}


def test_a_clip_has_a_derived_image_and_its_frame_is_named(tmp_path: Path) -> None:
    source = dataset(n_frames=5)
    data = content(source)
    written = write_dicom(data, tmp_path, finding(frame=2), ALGORITHM)
    all_valid(written)
    assert written.image is not None
    assert any("image of its own" in n for n in written.notes)
    image = read_dicom(written.image, key=KEY)
    looked_at = read_dicom(data, key=KEY, frames=(2,))
    assert np.array_equal(image.frames[0], looked_at.frames[0])
    assert image.spacing_mm == pytest.approx(looked_at.spacing_mm)
    assert (image.study, image.patient) == (looked_at.study, looked_at.patient)
    derived, report = read_back(written.image), read_back(written.report)
    assert derived.SourceImageSequence[0].ReferencedFrameNumber == 2
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "BurnedInAnnotation" not in derived
    assert read_back(written.segmentation or Path()).pixel_array.shape == phantom().mask.shape
    frame = [i for i in report.ContentSequence if "ReferencedSOPSequence" in i][-1].ReferencedSOPSequence[0]
    assert (frame.ReferencedSOPInstanceUID, frame.ReferencedFrameNumber) == (source.SOPInstanceUID, 2)
    assert any("frame 2 of the 5 frames" in t for t in texts(report))


@pytest.mark.parametrize("n_frames", [1, 4])
def test_without_a_mask_the_report_is_about_the_image(n_frames: int, tmp_path: Path) -> None:
    for number, mask in enumerate((None, np.zeros_like(phantom().mask))):
        written = write_dicom(
            content(dataset(n_frames=n_frames)), tmp_path, finding(mask=mask), ALGORITHM, stem=f"{number}"
        )
        all_valid(written)
        assert (written.segmentation, written.image, written.long_axis_mm) == (None, None, None)
        assert group_of(written).finding_type.meaning == "Whole image"
        assert "Long Axis" not in {m.name.meaning for m in group_of(written).get_measurements()}
        assert written.report.name == f"{number}-report.dcm"


def test_without_spacing_there_are_no_millimetres(tmp_path: Path) -> None:
    ds = dataset()
    del ds.SequenceOfUltrasoundRegions
    mask = np.zeros((ds.Rows, ds.Columns), bool)
    mask[60:80, 20:40] = mask[100:105, 20:25] = True
    written = write_dicom(content(ds), tmp_path, finding(mask=mask), ALGORITHM)
    all_valid(written)
    assert written.long_axis_mm is None
    assert any("2 parts" in n for n in written.notes)
    assert any("no size in millimetres" in t for t in texts(read_back(written.report)))


@pytest.mark.parametrize("n_frames", [1, 2])
def test_colour_and_loss_are_carried_on(n_frames: int, tmp_path: Path) -> None:
    ds = files.with_photometric("RGB")
    rgb = files.colours(dataset(), coloured=True)
    frame = files.pillow_frame(rgb, "JPEG", quality=95)
    if n_frames > 1:
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
        ds.NumberOfFrames, ds.FrameTime, ds.FrameIncrementPointer = n_frames, "33.3", 0x00181063
    compressed(ds, "1.2.840.10008.1.2.4.50", [frame] * n_frames, "YBR_FULL_422")
    ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", "7.5"
    written = write_dicom(content(ds), tmp_path, finding(), ALGORITHM)
    all_valid(written)
    last = read_back(written.image or written.segmentation or Path())
    assert (last.LossyImageCompression, float(last.LossyImageCompressionRatio)) == ("01", 7.5)
    assert last.LossyImageCompressionMethod == "ISO_10918_1"
    if written.image is not None:
        assert last.PhotometricInterpretation == "RGB"


@pytest.mark.parametrize(
    ("charset", "name"), [("ISO_IR 100", "Müller^Änne"), ("ISO_IR 192", "山田^太郎"), ("ISO_IR 101", "Dvořák^Łucja")]
)
def test_names_in_every_alphabet_arrive(charset: str, name: str, tmp_path: Path) -> None:
    ds = dataset()
    ds.SpecificCharacterSet, ds.PatientName = charset, name
    written = write_dicom(content(ds), tmp_path, finding(), ALGORITHM)
    all_valid(written)
    for path in (written.report, written.segmentation):
        assert str(read_back(path or Path()).PatientName) == name


def test_what_is_missing_or_wrong_in_the_source_does_not_stop_it(tmp_path: Path) -> None:
    ds = dataset(n_frames=2)
    for keyword in (
        "PatientBirthDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
        "ReferringPhysicianName",
        "Laterality",
    ):
        delattr(ds, keyword)
    ds.PatientSex, ds.PatientID = "UNKNOWN", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ds.StudyDate = "2000.01.01"
        data = content(ds)
    written = write_dicom(data, tmp_path, finding(), ALGORITHM)
    all_valid(written)
    assert read_back(written.report).PatientSex == ""


@pytest.mark.parametrize("n_frames", [1, 4])
def test_of_a_split_screen_the_stated_half_is_outlined_where_it_is(n_frames: int, tmp_path: Path) -> None:
    """Rows, columns and both spacings differ, so that nothing may be taken for another."""
    from copy import deepcopy

    ds = dataset(n_frames=n_frames)
    left = ds.SequenceOfUltrasoundRegions[0]
    right = deepcopy(left)
    left.RegionLocationMaxX1, right.RegionLocationMinX0 = 51, 56
    right.PhysicalDeltaX, right.PhysicalDeltaY = 0.01, 0.02
    ds.SequenceOfUltrasoundRegions = [right, left]
    mask = np.zeros((96, 40), bool)
    mask[10:20, 5:35] = True
    written = write_dicom(content(ds), tmp_path, finding(mask=mask), ALGORITHM, region=2)
    all_valid(written)
    assert written.long_axis_mm == pytest.approx(np.hypot(10 * 0.2, 30 * 0.1))
    drawn = read_back(written.segmentation or Path()).pixel_array.squeeze().astype(bool)
    if n_frames == 1:
        whole = np.zeros((144, 136), bool)
        whole[58:68, 61:91] = True
        assert np.array_equal(drawn, whole)
    else:
        assert np.array_equal(drawn, mask)
        image = read_dicom(written.image or Path(), key=KEY)
        assert np.array_equal(image.frames[0], read_dicom(content(ds), region=2, key=KEY).frames[0])
        assert image.spacing_mm == pytest.approx((0.2, 0.1))
    assert any("region 2 of 2 from the left" in t for t in texts(read_back(written.report)))


def test_a_spacing_that_is_given_goes_before_that_of_the_file(tmp_path: Path) -> None:
    written = write_dicom(content(dataset()), tmp_path, finding(spacing_mm=0.5), ALGORITHM)
    all_valid(written)
    assert written.long_axis_mm == pytest.approx(measure(phantom().mask, 0.5).diameter_mm)
    assert any("given by hand" in t for t in texts(read_back(written.report)))


@pytest.mark.parametrize("mask", [True, False])
def test_a_clip_of_one_frame(mask: bool, tmp_path: Path) -> None:
    ds = dataset()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.3.1"
    written = write_dicom(content(ds), tmp_path, finding() if mask else finding(mask=None), ALGORITHM)
    all_valid(written)
    assert (written.image is not None) == mask


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientBirthDate", "00000000"),
        ("StudyDate", "20001399"),
        ("StudyTime", "256199"),
        ("PatientName", "x" * 70),
        ("PatientName", "A^B^C^D^E^F"),
        ("PatientName", "A=B=C=D"),
    ],
)
def test_values_that_no_valid_file_has_are_left_empty(keyword: str, value: str, tmp_path: Path) -> None:
    ds = dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        setattr(ds, keyword, value)
        data = content(ds)
    written = write_dicom(data, tmp_path, finding(), ALGORITHM)
    all_valid(written)
    assert str(read_back(written.report)[keyword].value or "") == ""


def test_mistakes_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    data = content(dataset())
    wrong = [
        (data, finding(mask=phantom(64).mask), "the mask is 64 x 64, the picture 96 x 96"),
        (data, Finding({}), "probabilities"),
        (data, Finding({"benign": float("nan")}), "probabilities"),
        (data, finding(frame=2), "there are 1"),
        (data[:-99], finding(), "end too early"),
        (content(_without_uid()), finding(), "StudyInstanceUID is missing"),
        (content(_retired()), finding(), "a retired one"),
    ]
    for source, said, words in wrong:
        with pytest.raises(SonobreastError, match=words):
            write_dicom(source, tmp_path / "out", said, ALGORITHM)
    assert not (tmp_path / "out").exists()
    write_dicom(data, tmp_path, finding(), ALGORITHM)
    with pytest.raises(SonobreastError, match="there already"):
        write_dicom(data, tmp_path, finding(), ALGORITHM)
    (tmp_path / "file").write_text("")
    with pytest.raises(SonobreastError, match="cannot write"):
        write_dicom(data, tmp_path / "file" / "x", finding(), ALGORITHM)


def _without_uid() -> Any:
    ds = dataset()
    del ds.StudyInstanceUID
    return ds


def _retired() -> Any:
    ds = dataset()
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6"
    return ds


def test_no_log_and_no_message_names_the_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import highdicom as hd

    caplog.set_level(logging.DEBUG)
    ds = dataset()
    ds.PatientName = "SIMULATED PATIENT"  # without a caret highdicom warns, and quotes it
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        written = write_dicom(content(ds), tmp_path, finding(), ALGORITHM)
        monkeypatch.setattr(hd.seg, "Segmentation", lambda **_: (_ for _ in ()).throw(ValueError("SIMULATED PATIENT")))
        with pytest.raises(SonobreastError, match="cannot be made") as caught:
            write_dicom(content(ds), tmp_path / "again", finding(), ALGORITHM)
    whole = "".join(traceback.format_exception(caught.value))
    texts_ = [whole, caplog.text, *capfd.readouterr(), *(str(w.message) for w in said), str(written)]
    assert not any(s in t for s in files.SECRETS for t in texts_)


def test_without_highdicom_it_says_what_to_install() -> None:
    code = (
        "import sys; from pathlib import Path; sys.modules['highdicom'] = None\n"
        "from sonobreast.serving.dicom_out import *\n"
        "heavy = {'torch', 'scipy', 'pandas', 'pydicom', 'sonobreast.training'} & set(sys.modules)\n"
        "try: write_dicom(b'', Path('x'), Finding({'benign': 1.0}), Algorithm('a', '1'))\n"
        "except SonobreastError as error: print(error, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "sonobreast[dicom]" in done.stdout
    assert "set()" in done.stdout
