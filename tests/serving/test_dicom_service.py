"""DICOM through the service: answers in DICOM over a socket, and the round trip through the page in a real browser."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image
from tests.serving.live import changed, parts
from tests.serving.test_page import CHROMIUM, SHOWN, pixels

from sonobreast.data.dicom import as_rgb, read_dicom
from sonobreast.data.dicom_phantom import write_dicom as write_phantom
from sonobreast.data.phantom import simulate
from sonobreast.serving.bundle import Bundle
from sonobreast.serving.predictor import Predictor, load_predictor

DCIODVFY = shutil.which("dciodvfy")


@pytest.fixture(scope="module")
def predictor(ensemble: Bundle) -> Predictor:
    # A threshold so low that the tiny network outlines something
    return changed(load_predictor(ensemble, threads=1), mask_threshold=0.3)


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scans") / "scan.dcm"
    write_phantom(path, simulate(2, seed=0))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "clip.dcm"
    write_phantom(path, simulate(2, seed=1), n_frames=3)
    return path


def send(client: httpx.Client, content: bytes, **query: str) -> dict[str, Any]:
    answer = client.post("/v1/predict", files=parts(content, kind="application/dicom"), params=query)
    assert answer.status_code == 200, answer.text
    [result] = answer.json()["results"]
    return dict(result)


def objects(result: dict[str, Any]) -> dict[str, Any]:
    return {f["kind"]: pydicom.dcmread(BytesIO(base64.b64decode(f["content"]))) for f in result["dicom"]["files"]}


def assert_valid(path: Path) -> None:
    if DCIODVFY is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    said = subprocess.run([DCIODVFY, str(path)], capture_output=True, text=True, check=False)
    assert [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")] == []


def test_a_dicom_image_is_answered_in_dicom_where_that_is_asked_for(client: httpx.Client, scan: Path) -> None:
    assert send(client, scan.read_bytes())["dicom"] is None
    result = send(client, scan.read_bytes(), dicom="true")
    made, source = objects(result), pydicom.dcmread(scan)
    assert list(made) == ["report", "segmentation"]
    assert (made["report"].Modality, made["segmentation"].Modality) == ("SR", "SEG")
    for found in made.values():
        assert found.StudyInstanceUID == source.StudyInstanceUID
        assert found.PatientID == source.PatientID
    assert np.count_nonzero(made["segmentation"].pixel_array) == result["lesion"]["area_px"]
    text = made["report"].to_json()
    assert f"{100 * result['probability']['malignant']:.2f}" in text
    assert "Research use only" in text


def test_of_a_clip_the_segmented_frame_comes_along(client: httpx.Client, clip: Path) -> None:
    result = send(client, clip.read_bytes(), dicom="true")
    made = objects(result)
    assert list(made) == ["report", "segmentation", "image"]
    np.testing.assert_array_equal(made["image"].pixel_array.shape[:2], (result["height"], result["width"]))
    [referenced] = made["segmentation"].ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert referenced.ReferencedSOPInstanceUID == made["image"].SOPInstanceUID
    assert any("an image of its own" in note for note in result["dicom"]["notes"])


def test_frames_and_regions_are_chosen_by_the_sender(client: httpx.Client, clip: Path) -> None:
    found = pydicom.dcmread(clip)
    [whole] = found.SequenceOfUltrasoundRegions
    middle = (whole.RegionLocationMinX0 + whole.RegionLocationMaxX1) // 2
    halves = [deepcopy(whole) for _ in range(2)]
    halves[0].RegionLocationMaxX1, halves[1].RegionLocationMinX0 = middle - 1, middle
    found.SequenceOfUltrasoundRegions = halves
    stream = BytesIO()
    found.save_as(stream)
    query = {"frames": "ends", "region": "each", "dicom": "true"}
    answer = client.post("/v1/predict", files=parts(stream.getvalue(), kind="application/dicom"), params=query)
    results = answer.json()["results"]
    wanted = [(frame, region) for frame in (1, 2, 3) for region in (1, 2)]
    assert [(r["where"]["frame"], r["where"]["region"]) for r in results] == wanted
    for result, (frame, region) in zip(results, wanted, strict=True):
        picture = read_dicom(stream.getvalue(), frames=(frame,), region=region).frames[0]
        assert (result["height"], result["width"]) == picture.shape[:2]
        made = objects(result)
        if "image" in made:
            np.testing.assert_array_equal(made["image"].pixel_array, picture)
    assert any("image" in objects(r) for r in results)
    for wrong in ({"frames": "all"}, {"frames": "0"}, {"region": "left"}, {"region": "1\n"}):
        refused = client.post("/v1/predict", files=parts(stream.getvalue()), params=wrong)
        assert (refused.status_code, next(iter(wrong)) in refused.text) == (422, True)


def test_a_picture_has_no_answer_in_dicom(client: httpx.Client, scan: Path) -> None:
    stream = BytesIO()
    Image.fromarray(as_rgb(read_dicom(scan).frames[0])).save(stream, "PNG")
    assert send(client, stream.getvalue(), dicom="true")["dicom"] is None


def test_an_image_that_cannot_be_referred_to_is_predicted_all_the_same(client: httpx.Client, scan: Path) -> None:
    found = pydicom.dcmread(scan)
    del found.StudyInstanceUID
    stream = BytesIO()
    found.save_as(stream)
    result = send(client, stream.getvalue(), dicom="true")
    assert sum(result["probability"].values()) == pytest.approx(1.0)
    assert result["dicom"]["files"] == []
    assert "StudyInstanceUID" in result["dicom"]["error"]["what"]


def test_dicom_answers_are_given_for_one_file_at_a_time(client: httpx.Client, scan: Path) -> None:
    content = scan.read_bytes()
    answer = client.post("/v1/predict", files=parts(content, content), params={"dicom": "true"})
    assert answer.status_code == 413
    assert "one file" in answer.json()["error"]["remedy"]


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_round_trip_through_the_page(client: httpx.Client, scan: Path, clip: Path, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(str(client.base_url))
        page.set_input_files("#files", [str(scan), str(clip)])
        page.locator(SHOWN).nth(1).wait_for(timeout=20_000)
        one = page.locator("article", has_text="scan.dcm")
        assert " mm (" in one.locator(".size").inner_text()
        # The browser cannot draw DICOM: the service sends the picture, and layers are drawn over it
        for fade in ("map", "mask"):
            one.locator(f".layer.{fade} input").evaluate("e => { e.value = 0; e.dispatchEvent(new Event('input')); }")
        shown = page.locator("article").all_inner_texts()
        place = next(k for k, text in enumerate(shown) if "scan.dcm" in text)
        page.locator("article").nth(place).scroll_into_view_if_needed()
        np.testing.assert_array_equal(pixels(page, place), as_rgb(read_dicom(scan).frames[0]))
        kinds = {"scan.dcm": ["report", "segmentation"], "clip.dcm": ["report", "segmentation", "image"]}
        for name, wanted in kinds.items():
            card = page.locator("article", has_text=name)
            assert "name the patient" in card.locator(".dicom").inner_text()
            for number, kind in enumerate(wanted):
                with page.expect_download() as waiting:
                    card.locator(".save-dicom").nth(number).click()
                target = tmp_path / waiting.value.suggested_filename
                place = "-frame-2-of-3" if name == "clip.dcm" else ""
                assert target.name == f"{name.removesuffix('.dcm')}{place}-sonobreast-{kind}.dcm"
                waiting.value.save_as(target)
                assert (
                    pydicom.dcmread(target).StudyInstanceUID
                    == pydicom.dcmread({p.name: p for p in (scan, clip)}[name]).StudyInstanceUID
                )
            with page.expect_download() as waiting:
                card.locator(".save-json").click()
            waiting.value.save_as(tmp_path / "values.json")
            values = json.loads((tmp_path / "values.json").read_text())
            assert "dicom" not in values["result"]
            assert str(pydicom.dcmread(scan).PatientID) not in json.dumps(values)
        assert "frame 2 of 3" in page.locator("article", has_text="clip.dcm").locator("h2").inner_text()
        assert "frame 2 of the 3 frames" in page.locator("article", has_text="clip.dcm").locator(".notes").inner_text()
        browser.close()
    for path in tmp_path.glob("*.dcm"):
        assert_valid(path)
