"""The commands as a person gives them: what they say, what they leave, how they fail."""

from __future__ import annotations

import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from tests.fake import write_breast, write_bus_bra, write_bus_uclm, write_busi, write_class_folders, write_csv

from sonobreast import cli
from sonobreast.records import read_json, read_table, write_json

SMALL = [
    "--set", "data.subsample=null", "--set", "preprocess.size=64", "--set", "training.epochs=2",
    "--set", "augment.views=1", "--set", "model.architectures=[test_resnet]",
]  # fmt: skip


def call(*arguments: object) -> int:
    return cli._call([str(a) for a in arguments], debug=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_busi(tmp_path_factory.mktemp("data") / "a folder with spaces")


@pytest.fixture(scope="module")
def study(data: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert call("study", "run", "--data", data, "--weights", tiny_weights, "--out", out, *SMALL) == 0
    return out


def test_check_writes_the_manifest(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("data", "check", data, "--out", tmp_path) == 0
    rows = read_table(tmp_path / "manifest.csv", ("image", "label", "mask"))
    assert not any("_mask" in r["image"] for r in rows)
    assert call("data", "check", tmp_path / "manifest.csv", "--out", tmp_path / "again.csv") == 0
    again = read_table(tmp_path / "again.csv")
    assert [(r["image"], r["label"], r["sha256"]) for r in again] == [
        (r["image"], r["label"], r["sha256"]) for r in rows
    ]
    assert "patients or groups" in capsys.readouterr().out


def test_check_of_the_real_data_names_the_misprint(
    real_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("data", "check", real_data / "busi", "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert "487" in said
    assert "437" in said
    assert "misprint" in said
    assert len(read_table(tmp_path / "manifest.csv")) == 780


def test_check_of_other_hospitals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writers = {"BUS-BRA": write_bus_bra, "BrEaST": write_breast, "BUS-UCLM": write_bus_uclm}
    said = {}
    for name, writer in writers.items():
        assert call("data", "check", writer(tmp_path / name), "--out", tmp_path / "out" / name) == 0
        said[name] = " ".join(capsys.readouterr().out.split())
        assert f"{name}: {len(read_table(tmp_path / 'out' / name / 'manifest.csv'))} images" in said[name]
        assert "patients; splits keep each patient's images together" in said[name]
        assert "this is a part of it" in said[name]
    assert "BI-RADS: 2 (2), 3 (3), 4 (1), 5 (2)" in said["BUS-BRA"]
    assert "device: GE Logiq 5 @10-12MHz (4), GE Logiq 7" in said["BUS-BRA"]
    assert "pixel spacing: known for 9 of 9 images, 0.078 to 0.078 mm" in said["BrEaST"]
    assert said["BrEaST"].count("name an image that is not here") == 1
    assert "counts as malignant" in said["BUS-UCLM"]


def test_unknown_labels_are_named_and_mapped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_class_folders(tmp_path / "data", {"fibroadenoma": 2, "normal": 1})
    assert call("data", "check", data, "--out", tmp_path / "a") == 0
    said = capsys.readouterr().out
    assert "1 label(s) are none of benign, malignant, normal: 'fibroadenoma' (2)" in said
    assert "--labels labels.csv" in said
    labels = tmp_path / "labels.csv"
    labels.write_text("label,class\nfibroadenoma,benig\n", encoding="utf-8")
    assert call("data", "check", data, "--labels", labels, "--out", tmp_path / "b") == 1
    assert "did you mean benign?" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    labels.write_text("label,class\nfibroadenoma,benign\n", encoding="utf-8")
    assert call("data", "check", data, "--labels", labels, "--out", tmp_path / "b") == 0
    assert "none of" not in capsys.readouterr().out
    rows = read_table(tmp_path / "b" / "manifest.csv")
    assert [(r["label"], r["given_label"]) for r in rows] == [("benign", "fibroadenoma")] * 2 + [("normal", "normal")]


def test_study_of_mapped_labels(tmp_path: Path, tiny_weights: Path) -> None:
    data = write_class_folders(tmp_path / "data", {"cyst": 8, "ca": 8, "normal": 8})
    labels = tmp_path / "labels.csv"
    labels.write_text("label,class\ncyst,benign\nca,malignant\n", encoding="utf-8")
    out = tmp_path / "o"
    arguments = ["--data", data, "--weights", tiny_weights, "--out", out, "--labels", labels, *SMALL, "--no-images"]
    assert call("study", "run", *arguments, "--set", "training.optimizers=[adam]") == 0
    assert {r["label"] for r in read_table(out / "manifest.csv")} == {"benign", "malignant", "normal"}
    labels.write_text("label,class\ncyst,malignant\nca,malignant\n", encoding="utf-8")
    assert call("study", "run", *arguments, "--set", "training.optimizers=[adam]") == 1  # other data in this folder


def test_check_keeps_a_file_of_somebody_else(data: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("mine\n1\n", encoding="utf-8")
    assert call("data", "check", data, "--out", tmp_path) != 0
    assert (tmp_path / "manifest.csv").read_text(encoding="utf-8") == "mine\n1\n"


def test_study_leaves_tables_figures_and_report(study: Path) -> None:
    assert len(read_table(study / "results.csv")) == 3
    metrics = read_json(study / "metrics.json")
    assert [c["optimizer"] for c in metrics["configurations"]] == ["adam", "rmsprop", "sgdm"]
    for name in ("comparison", "confusion", "samples", "augmentation", "curves-test_resnet-adam"):
        with Image.open(study / "figures" / f"{name}.png") as picture:
            assert picture.width > 200


def test_report_is_one_file_without_addresses(study: Path) -> None:
    html = (study / "report.html").read_text(encoding="utf-8")
    # Nothing is fetched: pictures are inside, links lead to places of this page and to the model card beside it.
    assert not re.search(r"""src\s*=\s*["'](?!data:)|href\s*=\s*["'](?!#|model_card\.md["'])""", html)
    assert "@import" not in html
    assert "<script" not in html


def test_report_says_what_it_has_to(study: Path) -> None:
    html = (study / "report.html").read_text(encoding="utf-8")
    assert "Research use only" in html
    assert "grouping: none" in html
    assert "92.06" not in html  # ResNet50V2's value must not stand beside another network
    assert "487 (misprint for 437)" in html
    assert "model.architectures was changed to test_resnet" in html
    for reason in ("Keras&#39; default (Glorot-uniform weights, zero bias)", "not published; drawn at random"):
        assert reason in html
    results = read_table(study / "results.csv")
    for row in results:
        assert f"{100 * float(row['test_accuracy']):.2f}" in html


def test_report_sets_the_papers_values_beside_its_networks(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    from tests.fake import write_weights

    write_weights(weights, "mobilenetv2_100")
    arguments = [a if a != "model.architectures=[test_resnet]" else "model.architectures=[MobileNetV2]" for a in SMALL]
    assert call("study", "run", "--data", data, "--weights", weights, "--out", tmp_path / "o", *arguments) == 0
    html = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    for printed in ("82.54", "79.37", "90.48", "84.49"):
        assert printed in html
    assert tiny_weights != weights


def test_no_images_leaves_every_picture_of_the_data_out(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    arguments = ["--data", data, "--weights", tiny_weights, "--out", out, *SMALL, "--set", "training.optimizers=[adam]"]
    assert call("study", "run", *arguments, "--no-images") == 0
    assert not (out / "figures" / "samples.png").exists()
    assert not (out / "figures" / "augmentation.png").exists()
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "Sample images of each class" not in html
    assert "Augmented views" not in html


def test_report_is_drawn_anew_without_images(study: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(study, tmp_path / "copy")
    (copy / "report.html").unlink()
    pictures = [(copy / "figures" / f"{n}.png").read_bytes() for n in ("samples", "augmentation")]
    assert call("study", "report", copy, "--no-images") == 0
    html = (copy / "report.html").read_text(encoding="utf-8")
    assert not any(base64.b64encode(p).decode() in html for p in pictures)
    assert call("study", "report", copy) == 0
    html = (copy / "report.html").read_text(encoding="utf-8")
    assert all(base64.b64encode(p).decode() in html for p in pictures)


def test_second_call_keeps_what_is_finished(
    study: Path, data: Path, tiny_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("study", "run", "--data", data, "--weights", tiny_weights, "--out", study, *SMALL) == 0
    assert "3 of 3 runs were finished before" in capsys.readouterr().out


def test_train_is_a_study_of_one(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    arguments = ["--architecture", "test_resnet", "--optimizer", "sgdm", "--data", data, "--weights", tiny_weights]
    assert call("train", *arguments, "--out", tmp_path / "o", *SMALL) == 0
    assert [r["run"] for r in read_table(tmp_path / "o" / "results.csv")] == ["test_resnet-sgdm-r0-f0-s0"]


def test_a_class_name_cannot_put_code_into_the_report(tiny_weights: Path, tmp_path: Path) -> None:
    data = write_busi(tmp_path / "d")
    (data / "benign").rename(data / "<img src=x onerror=alert(1)>")
    arguments = [*SMALL, "--set", "data.classes=null", "--set", "training.optimizers=[adam]"]
    assert call("study", "run", "--data", data, "--weights", tiny_weights, "--out", tmp_path / "o", *arguments) == 0
    assert "<img src=x" not in (tmp_path / "o" / "report.html").read_text(encoding="utf-8")


BAD = {
    "missing folder": (["data", "check", "{tmp}/nothing"], "no such folder"),
    "empty folder": (["data", "check", "{tmp}/empty"], "no images found"),
    "unknown recipe": (["study", "run", "--recipe", "aulia2062", "--data", "{data}", "--out", "{tmp}/o"], "aulia2026"),
    "unknown key": (
        ["study", "run", "--data", "{data}", "--out", "{tmp}/o", "--set", "training.epoch=3"],
        "training.epochs",
    ),
    "unknown network": (
        ["train", "--architecture", "ResNet50V3", "--data", "{data}", "--out", "{tmp}/o"],
        "ResNet50V2",
    ),
    "unknown optimizer": (
        ["train", "--architecture", "resnet18", "--optimizer", "adamm", "--data", "{data}", "--out", "{tmp}/o"],
        "adam",
    ),
    "no weights there": (
        ["study", "run", "--data", "{data}", "--out", "{tmp}/o", "--weights", "{tmp}/empty", *SMALL],
        "no weights",
    ),
    "too few images": (
        ["study", "run", "--data", "{data}", "--out", "{tmp}/o", "--set", "model.backbone=finetune"],
        "draws 138 images",
    ),
    "no study": (["study", "report", "{tmp}/empty"], "holds no study"),
    "unknown option": (["data", "check", "{data}", "--frobnicate"], "frobnicate"),
    "unknown data set": (["data", "download", "bussi"], "busi"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_said_without_a_traceback(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    arguments, said = BAD[name]
    code = call(*(a.format(tmp=tmp_path, data=data) if "{" in a else a for a in arguments))
    error = capsys.readouterr().err
    assert code != 0
    assert said in error
    assert "Traceback" not in error


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sonobreast.cli", "data", "check", str(tmp_path / "nothing")]
    plain = subprocess.run(command, capture_output=True, text=True, check=False)
    debug = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert plain.returncode != 0
    assert debug.returncode != 0
    assert "Traceback" not in plain.stderr
    assert "Traceback" in debug.stderr


def test_simulated_images_are_said_to_be_simulated(tiny_weights: Path, tmp_path: Path) -> None:
    data = tmp_path / "phantoms"
    assert call("data", "phantom", data, "--n", 48, "--size", 64) == 0
    arguments = [*SMALL, "--set", "training.optimizers=[adam]", "--set", "split.grouping=group"]
    assert call("study", "run", "--data", data, "--weights", tiny_weights, "--out", tmp_path / "o", *arguments) == 0
    html = (tmp_path / "o" / "report.html").read_text(encoding="utf-8")
    body = html[html.index("<body>") :]
    assert body.index("These are simulated images") < body.index("<h1>")
    assert "Images were divided one by one" not in html
    rows = read_table(tmp_path / "o" / "split.csv")
    side: dict[str, set[str]] = {}
    for row in rows:
        side.setdefault(row["group"], set()).add(row["subset"])
    assert all(len(s) == 1 for s in side.values())


def test_a_stopped_training_from_scratch_goes_on(tmp_path: Path) -> None:
    """Weights drawn anew in the second call would make another network of it."""
    data = write_busi(tmp_path / "d")
    command = [
        *("study", "run", "--recipe", "quick", "--data", str(data), "--weights", "none", "--out", str(tmp_path / "o")),
        *("--set", "training.epochs=200", "--set", "preprocess.size=32", "--set", "model.architectures=[test_resnet]"),
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "sonobreast.cli", *command],
        stderr=subprocess.PIPE,
        text=True,
        # A background shell hands down an ignored SIGINT; a person's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    runs = tmp_path / "o" / "runs"
    while not any(runs.glob("test_resnet*/metrics.json")):
        time.sleep(0.05)
        assert process.poll() is None
    said = ""
    for _ in range(3):  # Python drops one that arrives inside a finaliser; a person presses again
        process.send_signal(signal.SIGINT)
        try:
            said = process.communicate(timeout=25)[1]
            break
        except subprocess.TimeoutExpired:
            continue
    assert process.returncode == 130
    assert "the same command goes on" in said
    assert "Traceback" not in said
    finished = {p: p.stat().st_mtime_ns for p in runs.glob("*/metrics.json")}
    assert 1 <= len(finished) < 3
    assert call(*command) == 0
    assert len(read_table(tmp_path / "o" / "results.csv")) == 3
    assert all(p.stat().st_mtime_ns == t for p, t in finished.items())


def test_two_configurations_are_compared(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    assert call("compare", study, "test_resnet-adam", "Test_ResNet + SGDM", "--out", file) == 0
    said = capsys.readouterr().out
    for part in ("Accuracy", "Brier score", "McNemar, exact", "DeLong", "Holm p", str(file)):
        assert part in said
    pair = read_json(file)["pairs"][0]
    metrics = {c["optimizer"]: c["accuracy"]["estimate"] for c in read_json(study / "metrics.json")["configurations"]}
    assert pair["metrics"]["accuracy"]["a"] == pytest.approx(metrics["adam"])
    assert pair["metrics"]["accuracy"]["b"] == pytest.approx(metrics["sgdm"])


def test_all_pairs_are_compared(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    assert call("compare", study, "--metric", "accuracy", "--out", file) == 0
    assert len(read_json(file)["pairs"]) == read_json(file)["family"] == 3
    assert "test_resnet-adam" in capsys.readouterr().out


BAD_COMPARISON = {
    "one only": (["test_resnet-adam"], "only one configuration"),
    "the same twice": (["test_resnet-adam", "TEST_RESNET + Adam"], "same configuration"),
    "unknown": (["test_resnet-adam", "test_resnet-adamw"], "test_resnet-adam"),
    "unknown metric": (["--metric", "acuracy"], "accuracy"),
    "a file of the study": (["--out", "{study}/metrics.json"], "not a comparison"),
    "no JSON": (["--out", "{study}/c.txt"], "JSON"),
}


@pytest.mark.parametrize("name", BAD_COMPARISON)
def test_bad_comparisons_are_said(name: str, study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, said = BAD_COMPARISON[name]
    assert call("compare", study, *(a.format(study=study) for a in arguments)) != 0
    assert said in capsys.readouterr().err


def test_another_folder_is_no_study_to_compare(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("compare", data) != 0
    assert "no predictions.csv" in capsys.readouterr().err


def test_a_plan_says_how_many_cases(capsys: pytest.CaptureFixture[str]) -> None:
    from sonobreast.evaluation.planning import auc_planner, proportion_planner

    assert call("plan", "--width", 0.1, "--expected", 0.9) == 0
    assert f"needs {proportion_planner(0.1, 0.9)} images" in capsys.readouterr().out
    assert call("plan", "--width", 0.1, "--expected", 0.9, "--design-effect", 1.5, "--auc") == 0
    needed = auc_planner(0.1, 0.9, 0.27, 1.5)
    said = capsys.readouterr().out
    assert f"needs {sum(needed)} images, {needed.malignant} of them malignant" in said
    assert "design effect" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--width", "10", "--expected", "0.9"], "between 0 and 1"),
        (["--width", "0.1", "--expected", "90"], "0 to 1"),
        (["--width", "0.1", "--expected", "0.9", "--level", "95"], "0.95"),
        (["--width", "0.1", "--expected", "0.9", "--design-effect", "0.5"], "or more"),
        (["--width", "0.1", "--expected", "0.4", "--auc"], "AUC"),
    ],
)
def test_bad_plans_are_said(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("plan", *arguments) != 0
    assert said in capsys.readouterr().err


@pytest.fixture(scope="module")
def folded(tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with patients, folds and seeds."""
    folder = tmp_path_factory.mktemp("folded")
    table = write_csv(folder / "data", {"benign": 14, "malignant": 14, "normal": 14})
    arguments = [
        *SMALL, "--set", "split.kind=kfold", "--set", "split.folds=2", "--set", "split.grouping=group",
        "--set", "split.validation=0.3", "--set", "training.seeds=[0,1]", "--set", "training.optimizers=[adam,sgdm]",
        "--set", "training.epochs=1",
    ]  # fmt: skip
    assert call("study", "run", "--data", table, "--weights", tiny_weights, "--out", folder / "out", *arguments) == 0
    return folder / "out"


def section(html: str, title: str) -> str:
    """What stands under a heading."""
    start = html.index(f"<h2>{title}</h2>")
    return html[start : html.index("<h2>", start + 4)]


def test_report_of_folds_seeds_and_patients(folded: Path) -> None:
    html = (folded / "report.html").read_text(encoding="utf-8")
    metrics = read_json(folded / "metrics.json")
    first, nested = metrics["configurations"][0], metrics["nested_choice"]
    assert f"test accuracy {100 * nested['accuracy']['estimate']:.1f} %" in section(html, "Result")
    assert "One half as wide would need about" in section(html, "Result")
    assert sum(c["times"] for c in nested["chosen"]) == 2
    differ = section(html, "Do the configurations differ?")
    assert "data:image/png;base64" in differ
    assert "test_resnet + Adam<br>test_resnet + SGDM" in differ
    spread = section(html, "How much the runs vary")
    assert "This is no interval" in spread
    assert f"{100 * first['spread']['minimum']:.1f}–{100 * first['spread']['maximum']:.1f}" in spread
    assert first["spread"]["count"] == 4
    assert f"{first['patients']['n']} patients" in section(html, "By patient")
    assert (first["patients"]["n"], first["patients"]["images"]) == (21, 42)
    values = section(html, "What an alarm is worth: predictive values")
    assert "PPV at<br>0.5 %" in values
    # Nothing is fetched: pictures are inside, links lead to places of this page and to the model card beside it.
    assert not re.search(r"""src\s*=\s*["'](?!data:)|href\s*=\s*["'](?!#|model_card\.md["'])""", html)
    with Image.open(folded / "figures" / "differences.png") as picture:
        assert picture.width > 200


def test_report_of_a_hold_out_says_what_is_not_known(study: Path) -> None:
    html = (study / "report.html").read_text(encoding="utf-8")
    assert "Best on the validation images" in section(html, "Result")
    assert "Each configuration was run once" in section(html, "How much the runs vary")
    assert "no patients are known" in section(html, "By patient")
    assert "exact McNemar" in section(html, "Do the configurations differ?")


def test_prevalences_can_be_chosen(folded: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folded, tmp_path / "copy")
    assert call("study", "report", copy, "--prevalence", 0.02, "--prevalence", 0.25) == 0
    html = (copy / "report.html").read_text(encoding="utf-8")
    assert "PPV at<br>2 %" in html
    assert "NPV at<br>25 %" in html
    assert "PPV at<br>0.5 %" not in html
    before, after = (read_json(f / "metrics.json") for f in (folded, copy))
    for old, new in zip(before["configurations"], after["configurations"], strict=True):
        assert {k: v for k, v in old.items() if k != "predictive_values"} == {
            k: v for k, v in new.items() if k != "predictive_values"
        }


def test_a_percentage_as_prevalence_is_refused(
    folded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folded, tmp_path / "copy")
    assert call("study", "report", copy, "--prevalence", 2) != 0
    assert "0.02" in capsys.readouterr().err
    assert (copy / "metrics.json").read_bytes() == (folded / "metrics.json").read_bytes()


def test_a_study_of_an_earlier_version_gives_a_report(
    folded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(folded, tmp_path / "copy")
    metrics = read_json(copy / "metrics.json")
    new = ("spread", "patients", "patients_reason", "predictive_values", "missing")
    old = [{k: v for k, v in c.items() if k not in new} for c in metrics["configurations"]]
    write_json(copy / "metrics.json", {"level": 0.95, "resamples": 2000, "configurations": old})
    assert call("study", "report", copy) == 0
    assert read_json(copy / "metrics.json") == metrics
    assert "Do the configurations differ?" in (copy / "report.html").read_text(encoding="utf-8")
    write_json(copy / "metrics.json", {"level": 0.95, "resamples": 2000, "configurations": old})
    (copy / "predictions.csv").unlink()
    assert call("study", "report", copy) != 0
    error = capsys.readouterr().err
    assert "predictions.csv" in error
    assert "run the study again" in error


# The audit, lists and divisions of one's own


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two copies and one picture under two labels."""
    root = write_busi(tmp_path_factory.mktemp("copies") / "d")
    shutil.copy(root / "benign" / "benign (1).png", root / "benign" / "benign (60).png")
    shutil.copy(root / "benign" / "benign (2).png", root / "malignant" / "malignant (60).png")
    return root


def test_audit_leaves_what_a_study_takes(
    copies: Path, tiny_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = tmp_path / "audit"
    assert call("data", "audit", copies, "--out", audit) == 0
    said = capsys.readouterr().out
    assert "label-conflict" in said
    assert "2 groups of two or more hold 4 images; 3 images suggested" in said.replace("\n", " ")
    arguments = ["--exclude", audit / "exclusions.csv", "--groups", audit / "groups.csv"]
    out = tmp_path / "out"
    assert call("study", "run", "--data", copies, "--weights", tiny_weights, "--out", out, *arguments, *SMALL) == 0
    left_out = {r["image"] for r in read_table(out / "exclusions.csv")}
    assert len(left_out) == 3
    assert not left_out & {r["image"] for r in read_table(out / "split.csv")}
    assert read_json(out / "looks.json")["test_sets"][0]["here"] == 3
    html = (out / "report.html").read_text(encoding="utf-8")
    assert "3 image(s) were left out by a list" in html
    assert "one picture with the labels benign and malignant" in html
    assert "Looks at the test images: 3 trained networks of this study" in html


def test_copies_stay_together_unless_the_recipe_says_otherwise(
    copies: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    for grouping in ("group", "none"):
        out = tmp_path / grouping
        arguments = [*SMALL, "--set", f"split.grouping={grouping}", "--set", "training.optimizers=[adam]"]
        assert call("study", "run", "--data", copies, "--weights", tiny_weights, "--out", out, *arguments) == 0
        rows = read_table(out / "split.csv")
        sides: dict[str, set[str]] = {}
        for row in rows:
            sides.setdefault(row["group"], set()).add(row["subset"])
        assert len(sides) == 21
        if grouping == "group":
            assert all(len(s) == 1 for s in sides.values())
        html = (out / "report.html").read_text(encoding="utf-8")
        assert ("grouping: none" in html) == (grouping == "none")
        assert "hold 4 of the 23 used images" in html


def test_a_division_of_ones_own_is_said(copies: Path, tiny_weights: Path, tmp_path: Path) -> None:
    subsets = ("train", "train", "validation", "test")
    names = [f"{c}/{c} ({i}).png" for c in ("benign", "malignant", "normal") for i in range(3, 7)]
    file = tmp_path / "own.csv"
    lines = [f"{n},{subsets[i % 4]}" for i, n in enumerate(names)]
    file.write_text("image,subset\n" + "\n".join(lines) + "\n", encoding="utf-8")
    out = tmp_path / "out"
    arguments = ["--split", file, *SMALL, "--set", "training.optimizers=[adam]"]
    assert call("study", "run", "--data", copies, "--weights", tiny_weights, "--out", out, *arguments) == 0
    assert {(r["image"], r["subset"]) for r in read_table(out / "split.csv")} == {
        (n, subsets[i % 4]) for i, n in enumerate(names)
    }
    assert "The division is the user's own" in (out / "report.html").read_text(encoding="utf-8").replace("&#39;", "'")


def test_leakage_and_draws_from_the_command_line(copies: Path, tiny_weights: Path, tmp_path: Path) -> None:
    common = ["--data", copies, "--weights", tiny_weights, *SMALL]
    folds = ["--set", "split.folds=3", "--set", "split.repeats=1"]
    assert call("study", "leakage", "--out", tmp_path / "l", *common, *folds) == 0
    assert (tmp_path / "l" / "report.html").is_file()
    one = ["--set", "training.optimizers=[adam]"]
    assert call("study", "reproduce", "aulia2026", "--draws", 2, "--out", tmp_path / "d", *common, *one) == 0
    assert "2 draws" in (tmp_path / "d" / "report.html").read_text(encoding="utf-8")


def test_models_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", "LeNet", "test_vit", "RandomForest", "--weights", "none") == 0
    shown = capsys.readouterr().out
    assert "0.06 M" in shown
    assert "test_vit, RandomForest" not in shown
    assert "test_vit: cannot segment: a decoder needs feature maps of 3 scales" in shown
    assert "test_vit: images of 160 px only" in shown
    assert call("models", "--json", "LeNet") == 0
    assert json.loads(capsys.readouterr().out)["models"][0]["timm_name"] == "lenet_modified"


@pytest.mark.parametrize(
    ("name", "said"),
    [("LeNt", "did you mean LeNet"), ("frozen:", "prefix without the name"), ("frozen:RandomForest", "no backbone")],
)
def test_a_name_that_means_nothing_is_said(name: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("models", name) == 1
    assert said in capsys.readouterr().err
    assert call("train", "--data", ".", "--out", "unused", "--architecture", name) == 1
    assert said in capsys.readouterr().err
    assert not Path("unused").exists()
