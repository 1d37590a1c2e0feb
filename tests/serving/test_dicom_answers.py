"""DICOM files among the images that a bundle predicts, and what it answers in DICOM."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from tests import dicom_files as files

from sonobreast.data.dicom import as_rgb, read_dicom
from sonobreast.data.dicom_phantom import dicom_dataset
from sonobreast.data.dicom_phantom import write_dicom as write_phantom
from sonobreast.data.phantom import simulate
from sonobreast.errors import SonobreastError
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.dicom_answers import comments
from sonobreast.serving.inference import infer, problems_file
from sonobreast.serving.predictor import Predictor, load_predictor
from sonobreast.serving.readers import Choice, Limits, choice_of
from sonobreast.serving.readers import read as pictures


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
    # What depends on something else is another answer
    infer(predictor, [file], tmp_path / "three.csv", dicom_out=tmp_path / "dicom", spacing_mm=0.5)
    infer(
        replace(predictor, bundle=replace(predictor.bundle, fingerprint="f" * 64)),
        [file],
        tmp_path / "four.csv",
        dicom_out=tmp_path / "dicom",
    )
    assert len(list((tmp_path / "dicom").glob("*-report.dcm"))) == 3


def test_an_answer_that_a_stop_left_half_written_is_written_anew(
    predictor: Predictor, file: Path, tmp_path: Path
) -> None:
    infer(predictor, [file], tmp_path / "one.csv", dicom_out=tmp_path / "dicom")
    names = sorted(p.name for p in (tmp_path / "dicom").iterdir())
    assert len(names) == 2
    next((tmp_path / "dicom").glob("*-report.dcm")).unlink()
    outcome = infer(predictor, [file], tmp_path / "two.csv", dicom_out=tmp_path / "dicom")
    assert (outcome.predicted, outcome.problems) == (1, 0)
    assert sorted(p.name for p in (tmp_path / "dicom").iterdir()) == names
    report, segmentation = (pydicom.dcmread(tmp_path / "dicom" / n) for n in names)
    assert segmentation.SOPInstanceUID in set(_uids(report))


def _uids(ds: Any) -> Iterator[str]:
    for element in ds.iterall():
        if element.VR == "UI":
            yield str(element.value)


def test_what_is_said_beside_the_probabilities(predictor: Predictor, file: Path) -> None:
    found = predictor.predict(file)
    told = comments(replace(found, in_domain=False, conformal=("benign", "malignant"), malignant=True, threshold=0.2))
    assert any("unlike the training images" in t for t in told)
    assert any("abstains" in t and "benign, malignant" in t for t in told)
    assert any("at or above" in t for t in told)
    assert comments(replace(found, in_domain=True, conformal=("benign",), malignant=None, threshold=None)) == []


# Clips and split screens


def split_clip(n_frames: int, *, size: int = 96) -> Any:
    """A clip whose frames are brighter from one to the next, on a screen of two B-mode regions."""
    from copy import deepcopy

    ds = dicom_dataset(files.phantom(size), n_frames=n_frames)
    frames = np.frombuffer(ds.PixelData, np.uint8)[: n_frames * ds.Rows * ds.Columns]
    frames = frames.reshape(n_frames, -1) // 2 + 10 * np.arange(n_frames, dtype=np.uint8)[:, None]
    ds.PixelData = frames.tobytes() + b"\0" * (frames.size % 2)
    left = ds.SequenceOfUltrasoundRegions[0]
    right = deepcopy(left)
    left.RegionLocationMaxX1, right.RegionLocationMinX0 = size // 2 - 1, size // 2 + 4
    right.PhysicalDeltaX = right.PhysicalDeltaY = 0.02
    ds.SequenceOfUltrasoundRegions = [right, left]
    return ds


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return files.save(split_clip(7), tmp_path_factory.mktemp("clip") / "clip.dcm")


def rows_of(out: Path) -> list[dict[str, str]]:
    with out.open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        (Choice(), [(4, 1)]),
        (Choice("first", 2), [(1, 2)]),
        (Choice("last", "each"), [(7, 1), (7, 2)]),
        (Choice("ends", "each"), [(f, r) for f in (1, 4, 7) for r in (1, 2)]),
        (Choice(3, 1), [(2, 1), (4, 1), (6, 1)]),
    ],
)
def test_pictures_by_choice(clip: Path, choice: Choice, wanted: list[tuple[int, int]]) -> None:
    whole = np.frombuffer(split_clip(7).PixelData, np.uint8).reshape(7, 144, 136)
    for source in (clip, clip.read_bytes()):
        found = list(pictures(source, choice=choice))
        assert [(f.place.frame, f.place.region) for f in found if f.place is not None] == wanted
        assert [(f.index, f.count) for f in found] == [(k, len(wanted)) for k in range(len(wanted))]
        for frame, (number, region) in zip(found, wanted, strict=True):
            part = slice(0, 48) if region == 1 else slice(52, 96)
            assert np.array_equal(frame.image[..., 0], whole[number - 1, 48:, part])
            assert frame.spacing_mm == pytest.approx(files.phantom(96).spacing_mm if region == 1 else 0.2)
            assert [n.code for n in frame.notes] == ["dicom-clip", "dicom-split-screen"]
        rest = list(pictures(source, choice=choice, first=1))
        assert [f.index for f in rest] == [f.index for f in found[1:]]
    with pytest.raises(SonobreastError, match="many pictures"):
        list(pictures(clip, Limits(frames=len(wanted) - 1), choice=choice))


def test_words_that_are_no_choice(clip: Path) -> None:
    assert choice_of("5", "2") == Choice(5, 2)
    for words in (("all", "each"), ("0", "each"), ("middle", "0"), ("middle", "left")):
        with pytest.raises(SonobreastError, match="given as"):
            choice_of(*words)
    with pytest.raises(SonobreastError, match="no B-mode region 3") as caught:
        list(pictures(clip, choice=Choice("middle", 3)))
    assert caught.value.file == str(clip)


def test_each_picture_has_a_row_an_overlay_and_answers_that_cite_it(
    predictor: Predictor, clip: Path, tmp_path: Path
) -> None:
    out, choice, taken = tmp_path / "out.csv", Choice("ends", "each"), []
    Image.fromarray(files.phantom(96).image).save(tmp_path / "plain.png")
    outcome = infer(
        predictor,
        [clip, tmp_path / "plain.png"],
        out,
        overlays=tmp_path / "overlays",
        dicom_out=tmp_path / "dicom",
        choice=choice,
        take=taken.append,
    )
    assert (outcome.predicted, outcome.problems) == (7, 0)
    *rows, plain = rows_of(out)
    wanted = [(str(f), "7", str(r), "2") for f in (1, 4, 7) for r in (1, 2)]
    assert [(r["dicom_frame"], r["dicom_frames"], r["region"], r["regions"]) for r in rows] == wanted
    assert {r["notes"] for r in rows} == {"dicom-clip|dicom-split-screen"}
    assert {r["choice"] for r in rows} == {"ends/each"}
    assert [plain[c] for c in ("dicom_frame", "dicom_frames", "region", "regions", "notes", "choice")] == [""] * 6
    assert [t["region"] for t in taken] == [1, 2] * 3 + [None]
    assert json.dumps(taken)
    assert len({r["p_malignant"] for r in rows}) == 6
    overlays = sorted(p.name for p in (tmp_path / "overlays").rglob("*.png"))
    assert overlays == sorted(
        [f"clip.dcm.frame{f}-region{r}.png" for f in (1, 4, 7) for r in (1, 2)] + ["plain.png.png"]
    )
    for row in rows:
        [path] = (tmp_path / "dicom").glob(f"*-frame{row['dicom_frame']}-region{row['region']}-report.dcm")
        report = pydicom.dcmread(path)
        said = [str(e.value) for e in report.iterall() if e.keyword == "TextValue"]
        assert any(f"frame {row['dicom_frame']} of the 7" in s for s in said)
        assert any(f"B-mode region {row['region']} of 2" in s for s in said)
        frames = {int(e.value) for e in report.iterall() if e.keyword == "ReferencedFrameNumber"}
        assert frames == {int(row["dicom_frame"])}
        values = [float(e.value) for e in report.iterall() if e.keyword == "NumericValue"]
        assert round(100 * float(row["p_malignant"]), 2) in values
        if row["lesion_area_px"] != "0":
            assert round(float(row["lesion_diameter_mm"]), 1) in values
            segmentation = path.with_name(path.name.replace("report", "segmentation"))
            assert pydicom.dcmread(segmentation).pixel_array.sum() == int(row["lesion_area_px"])
    assert any(r["lesion_area_px"] != "0" for r in rows)
    for path in (tmp_path / "dicom").iterdir():
        files.verify(path)


def test_a_stopped_clip_goes_on_and_other_choices_have_other_tables(
    predictor: Predictor, clip: Path, tmp_path: Path
) -> None:
    out, choice = tmp_path / "out.csv", Choice("ends", "each")
    infer(predictor, [clip], out, choice=choice)
    whole = out.read_bytes()
    out.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]) + b"torn,")
    again = infer(predictor, [clip], out, choice=choice)
    assert (again.kept, again.predicted) == (3, 3)
    assert out.read_bytes() == whole
    for other in (Choice(), Choice("ends", 1), Choice(3, "each")):
        with pytest.raises(SonobreastError, match="--frames ends --region each"):
            infer(predictor, [clip], out, choice=other)
    assert out.read_bytes() == whole


def test_of_a_long_clip_no_more_than_a_batch_of_pictures_is_held(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sonobreast.serving import inference

    begun: list[int] = []
    read = inference.read
    monkeypatch.setattr(inference, "read", lambda *a, **k: begun.append(k["first"]) or read(*a, **k))
    clip = files.save(split_clip(10), tmp_path / "clip.dcm")
    # With overlays whole pictures are held until their batch is drawn
    infer(predictor, [clip], tmp_path / "out.csv", choice=Choice(10, "each"), overlays=tmp_path / "overlays")
    assert begun == [0, inference.BATCH, 2 * inference.BATCH]
    rows = rows_of(tmp_path / "out.csv")
    assert [(r["dicom_frame"], r["region"]) for r in rows] == [(str(f), str(r)) for f in range(1, 11) for r in (1, 2)]


def test_limits_hold_before_a_pixel_is_decoded_and_a_clip_may_be_larger_than_memory(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sonobreast.data import dicom_frames

    assert len(list(pictures(clip, Limits(bytes=1000)))) == 1  # a file is not read as a whole
    with pytest.raises(SonobreastError, match="many bytes"):
        list(pictures(clip.read_bytes(), Limits(bytes=1000)))
    monkeypatch.setattr(dicom_frames, "_decode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(SonobreastError, match="many pixels"):
        list(pictures(clip, Limits(pixels=136 * 144 - 1)))


def test_files_of_a_pacs_have_no_ending_and_answers_are_no_scans(
    predictor: Predictor, clip: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    study.mkdir()
    (study / "IM000001").write_bytes(clip.read_bytes())
    (study / "1.2.840.4").write_bytes(clip.read_bytes())
    (study / "DICOMDIR").write_bytes(clip.read_bytes())
    (study / "notes").write_text("no image")
    for out in ("one.csv", "two.csv"):
        outcome = infer(predictor, [study], tmp_path / out, dicom_out=study / "dicom")
        assert (outcome.files, outcome.predicted, outcome.problems) == (2, 2, 0)


def test_a_spacing_that_is_given_counts_where_the_file_states_none(
    predictor: Predictor, file: Path, tmp_path: Path
) -> None:
    for name, spacing in (("own.csv", None), ("given.csv", 0.5)):
        infer(predictor, [file], tmp_path / name, dicom_out=tmp_path / name[:3], spacing_mm=spacing)
    [own], [both] = rows_of(tmp_path / "own.csv"), rows_of(tmp_path / "given.csv")
    assert own["spacing_mm"] == both["spacing_mm"] != "0.5"
    ds = pydicom.dcmread(file)
    del ds.SequenceOfUltrasoundRegions
    ds.save_as(file)
    infer(predictor, [file], tmp_path / "out.csv", dicom_out=tmp_path / "dicom", spacing_mm=0.5)
    [row] = rows_of(tmp_path / "out.csv")
    assert float(row["lesion_diameter_mm"]) == pytest.approx(float(row["lesion_diameter_px"]) / 2, abs=0.01)
    [path] = (tmp_path / "dicom").glob("*-report.dcm")
    report = pydicom.dcmread(path)
    assert round(float(row["lesion_diameter_mm"]), 1) in [
        float(e.value) for e in report.iterall() if e.keyword == "NumericValue"
    ]
    assert any("given by hand" in str(e.value) for e in report.iterall() if e.keyword == "TextValue")


def test_an_answer_that_failed_is_a_problem_until_it_is_there(
    predictor: Predictor, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise SonobreastError("no room")

    out, folder = tmp_path / "out.csv", tmp_path / "dicom"
    with monkeypatch.context() as patch:
        patch.setattr("sonobreast.serving.dicom_answers.write_answers", fails)
        for kept in (0, 1):
            outcome = infer(predictor, [clip], out, dicom_out=folder)
            assert (outcome.kept, outcome.problems) == (kept, 1)
    before = out.read_bytes()
    assert infer(predictor, [clip], out, dicom_out=folder).problems == 0
    assert len(list(folder.glob("*-report.dcm"))) == 1
    assert out.read_bytes() == before
