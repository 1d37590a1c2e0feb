"""Each defect planted in a clean folder is found under its code, and the clean folder passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tests.fake import save_mask, write_busi, write_class_folders, write_csv

from sonobreast.data import audit as audits
from sonobreast.data import exclusions, groups, texture
from sonobreast.data.audit import Audit, audit
from sonobreast.data.audit_page import write_page
from sonobreast.data.card import card_of, compare_with_card, load_card, write_card
from sonobreast.data.findings import KINDS, Finding
from sonobreast.data.manifest import Manifest, build
from sonobreast.errors import SonobreastError
from sonobreast.records import read_json, read_table


def by_code(result: Audit) -> dict[str, Finding]:
    return {f.code: f for f in result.findings}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_busi(tmp_path_factory.mktemp("clean"))


@pytest.fixture(scope="module")
def clean_audit(clean: Path) -> Audit:
    return audit(clean)


def test_every_check_answers_once(clean_audit: Audit) -> None:
    assert [f.code for f in clean_audit.findings] == list(dict.fromkeys(f.code for f in clean_audit.findings))
    assert set(by_code(clean_audit)) == set(KINDS)


def test_a_clean_folder_passes(clean_audit: Audit) -> None:
    found = {f.code for f in clean_audit.findings if f.status == "found"}
    assert found <= {"patients-unknown", "shortcut-border", "shortcut-overlay"}, "speckle has no defects"
    assert by_code(clean_audit)["shortcut-size"].status == "not applicable", "all are of one size"
    assert not [r for r in clean_audit.exclusions if r.exclude == "yes"]


def copy_file(root: Path) -> None:
    shutil.copy(root / "benign/benign (1).png", root / "benign/benign (90).png")


def copy_pixels(root: Path) -> None:
    Image.open(root / "benign/benign (3).png").save(root / "benign/benign (90).bmp")


def copy_brighter(root: Path) -> None:
    Image.open(root / "benign/benign (3).png").point(lambda v: min(255, int(v * 1.15))).save(
        root / "benign/benign (90).png"
    )


def copy_under_another_label(root: Path) -> None:
    shutil.copy(root / "benign/benign (1).png", root / "malignant/malignant (90).png")


def many_copies(root: Path) -> None:
    for i in range(90, 101):
        shutil.copy(root / "benign/benign (1).png", root / f"benign/benign ({i}).png")


def no_mask(root: Path) -> None:
    (root / "benign/benign (2)_mask.png").unlink()


def broken_image(root: Path) -> None:
    (root / "benign/benign (2).png").write_bytes(b"no image")


def broken_mask(root: Path) -> None:
    (root / "benign/benign (2)_mask.png").write_bytes(b"no image")


def small_mask(root: Path) -> None:
    save_mask(root / "benign/benign (2)_mask.png", np.ones((10, 10), bool))


def empty_mask(root: Path) -> None:
    save_mask(root / "benign/benign (2)_mask.png", np.zeros((60, 80), bool))


def full_mask_of_a_normal_image(root: Path) -> None:
    lesion = np.zeros((60, 80), bool)
    lesion[20:30, 20:30] = True
    save_mask(root / "normal/normal (2)_mask.png", lesion)


def one_mask_for_two(root: Path) -> None:
    shutil.copy(root / "benign/benign (2)_mask.png", root / "benign/benign (3)_mask.png")


def coloured(root: Path) -> None:
    picture = Image.open(root / "benign/benign (2).png").convert("RGB")
    ImageDraw.Draw(picture).rectangle((30, 20, 50, 40), fill=(220, 30, 20))
    picture.save(root / "benign/benign (2).png")


PLANTED: dict[str, Callable[[Path], None]] = {
    "identical-file": copy_file,
    "identical-pixels": copy_pixels,
    "near-duplicate": copy_brighter,
    "label-conflict": copy_under_another_label,
    "large-group": many_copies,
    "mask-missing": no_mask,
    "unreadable-image": broken_image,
    "mask-unreadable": broken_mask,
    "mask-size": small_mask,
    "mask-empty": empty_mask,
    "mask-not-empty-normal": full_mask_of_a_normal_image,
    "mask-shared": one_mask_for_two,
    "colour-overlay": coloured,
}


@pytest.mark.parametrize("code", PLANTED)
def test_a_planted_defect_is_found(code: str, clean_audit: Audit, tmp_path: Path) -> None:
    assert by_code(clean_audit)[code].status != "found"
    root = write_busi(tmp_path / "b")
    PLANTED[code](root)
    found = by_code(audit(root))[code]
    assert found.status == "found"
    assert any("(90)" in name or "(2)" in name for files in found.files for name in files)


def test_two_labels_of_one_picture_stay_unless_the_list_is_used(tmp_path: Path) -> None:
    root = write_busi(tmp_path / "b")
    copy_under_another_label(root)
    result = audit(root)
    audits.write(tmp_path / "out", result)
    both = {"benign/benign (1).png", "malignant/malignant (90).png"}
    assert both <= {c.image for c in result.manifest.cases}
    rows = exclusions.read(tmp_path / "out" / "exclusions.csv")
    assert {r.image for r in rows if r.exclude == "yes"} == both
    rest, _ = exclusions.apply(build(root), rows, tmp_path)
    assert not both & {c.image for c in rest.cases}


def test_of_copies_the_list_keeps_one(tmp_path: Path) -> None:
    root = write_busi(tmp_path / "b")
    many_copies(root)
    result = audit(root)
    out = [r.image for r in result.exclusions if r.exclude == "yes"]
    assert len(out) == 11
    assert "benign/benign (1).png" not in out, "the one with a mask stays"


def test_a_patient_with_two_labels_is_no_conflict(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "d", group_size=2)
    text = file.read_text(encoding="utf-8").replace("group-M0,M0", "group-B0,B0")
    file.write_text(text, encoding="utf-8")
    found = by_code(audit(file))
    assert found["label-conflict"].status == "passed"
    assert found["patients-unknown"].status == "passed"
    assert found["copy-across-patients"].status == "passed"


def test_one_picture_of_two_patients_is_found(tmp_path: Path) -> None:
    file = write_csv(tmp_path / "d", group_size=1)
    shutil.copy(tmp_path / "d/images/benign_0.png", tmp_path / "d/images/benign_5.png")
    found = by_code(audit(file))["copy-across-patients"]
    assert found.files == (("images/benign_0.png", "images/benign_5.png"),)


def test_folders_without_masks(tmp_path: Path) -> None:
    found = by_code(audit(write_class_folders(tmp_path / "c")))
    for code in ("mask-missing", "mask-empty", "mask-shared", "mask-size", "mask-unreadable", "mask-not-empty-normal"):
        assert found[code].status == "not applicable"


def test_planted_copies_of_the_texture_generator_are_found(tmp_path: Path) -> None:
    texture.write(tmp_path / "t", n=120, seed=3, size=160, copies=0.3)
    planted = read_table(tmp_path / "t" / "planted.csv", ("image", "copy_of"), versioned=False)
    group = {m.image: m.group for m in audit(tmp_path / "t").members}
    copies = [r for r in planted if r["copy_of"]]
    together = [group[r["image"]] == group[r["copy_of"]] for r in copies]
    assert len(copies) >= 30
    assert np.mean(together) >= 0.98


def test_files_and_page(tmp_path: Path) -> None:
    root = write_busi(tmp_path / "b & <c>")
    copy_under_another_label(root)
    result = audit(root)
    out = tmp_path / "out"
    audits.write(out, result)
    write_page(out / "audit.html", result)
    stored = read_json(out / "audit.json")
    assert stored["groups"] == {"number": 21, "of_two_or_more": 1, "images_in_them": 2, "largest": 2}
    assert [f["code"] for f in stored["findings"]] == [f.code for f in result.findings]
    assert groups.read(out / "groups.csv", result.manifest) == result.members
    pair = read_table(out / "pairs.csv", audits.PAIR_COLUMNS)[0]
    assert (pair["image"], pair["other"]) == ("benign/benign (1).png", "malignant/malignant (90).png")
    html = (out / "audit.html").read_text(encoding="utf-8")
    assert "<c>" not in html, "names are escaped"
    assert html.count("data:image/jpeg;base64,") >= 2
    assert "http://" not in html
    assert "https://" not in html
    write_page(out / "audit.html", result, images=False)
    assert "data:image" not in (out / "audit.html").read_text(encoding="utf-8")


def test_a_place_that_cannot_be_written_to_shows_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SonobreastError, match="cannot write"):
        audits.prepare(tmp_path / "file")


def test_a_card_is_for_complete_public_data_only(clean_audit: Audit, tmp_path: Path) -> None:
    assert compare_with_card(clean_audit) == []
    with pytest.raises(SonobreastError, match="complete data set"):
        write_card(tmp_path / "card.json", clean_audit)


@pytest.mark.slow
def test_busi_gives_its_card(real_busi: Manifest) -> None:
    result = audit(real_busi.root)
    lines = compare_with_card(result)
    assert len(lines) == 1, lines
    assert lines[0].endswith("reproduced")
    assert ["benign/benign (433).png", "malignant/malignant (145).png"] in card_of(result)["groups"]


def test_the_card_in_the_package() -> None:
    card = load_card("busi")
    assert card is not None
    assert json.loads(json.dumps(card))["images"] == 780
    assert max(len(g) for g in card["groups"]) <= 10 or card["findings"]["large-group"]["status"] == "found"
    assert load_card("nowhere") is None
