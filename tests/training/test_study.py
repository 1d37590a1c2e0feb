"""A study goes on after anything, and never takes a half-written file for a finished one."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from filelock import FileLock
from safetensors.torch import load_file
from tests.fake import tiny_recipe, write_busi, write_class_folders, write_weights

from sonobreast.config import Recipe
from sonobreast.data import manifest as manifests
from sonobreast.data.cohort import Sources
from sonobreast.errors import SonobreastError
from sonobreast.records import read_json, read_table
from sonobreast.training import study, view_file
from sonobreast.training.fit import is_finished, load_run, read_config
from sonobreast.training.reporter import Reporter
from sonobreast.training.study import Outcome, run_study

posix = pytest.mark.skipif(os.name != "posix", reason="SIGKILL and fork are POSIX")
STAGE_FILES = {
    "config.yaml", "manifest.csv", "split.csv", "environment.json", "runs", "backbones",
    "predictions.csv", "results.csv", "metrics.json", "failed.json",
}  # fmt: skip
GRID = {"training.optimizers": ["adam", "sgdm"], "training.epochs": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("data") / "data", seed=3)


@pytest.fixture(scope="module", autouse=True)
def _quick_intervals() -> Any:
    """The intervals have tests of their own."""
    with pytest.MonkeyPatch.context() as patch:
        original = study.study_metrics
        patch.setattr(study, "study_metrics", lambda *given: original(*given, resamples=1000))
        yield


@pytest.fixture(scope="module")
def whole(data: Path, tiny_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study that nothing interrupted; tests only read it."""
    out = tmp_path_factory.mktemp("whole") / "out"
    outcome = run_study(tiny_recipe(GRID), data, str(tiny_weights), out)
    assert outcome == Outcome(2, 0, {})
    return out


def visible(out: Path) -> set[str]:
    return {p.name for p in out.iterdir() if not p.name.startswith(".")}


def times(out: Path) -> dict[str, int]:
    return {
        str(p.relative_to(out)): p.stat().st_mtime_ns
        for p in (out / "runs").rglob("*")
        if p.is_file() and not any(part.startswith(".") for part in p.relative_to(out).parts)
    }


def test_what_a_study_leaves(whole: Path) -> None:
    assert visible(whole) >= STAGE_FILES
    assert "cache" not in visible(whole)
    runs = sorted(p.name for p in (whole / "runs").iterdir())
    assert runs == ["test_resnet-adam-r0-f0-s0", "test_resnet-sgdm-r0-f0-s0"]
    header = (whole / "predictions.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == (
        "run,architecture,optimizer,repeat,fold,seed,subset,image,group,label,predicted,"
        "p_benign,p_malignant,p_normal,schema_version"
    )
    table = pd.read_csv(whole / "predictions.csv")
    split = {(r["image"], r["subset"], r["label"], r["group"]) for r in read_table(whole / "split.csv")}
    for run, part in table.groupby("run"):
        assert run in runs
        assert set(part[["image", "subset", "label", "group"]].itertuples(index=False, name=None)) == split
        assert len(part) == 21
    assert [r["run"] for r in read_table(whole / "results.csv")] == runs
    metrics = read_json(whole / "metrics.json")
    assert [(c["architecture"], c["optimizer"]) for c in metrics["configurations"]] == [
        ("test_resnet", "adam"),
        ("test_resnet", "sgdm"),
    ]
    assert read_json(whole / "failed.json")["runs"] == {}
    assert len(list((whole / "backbones").iterdir())) == 1
    for run in runs:
        load_run(whole / "runs" / run)
    for name in ("manifest.csv", "split.csv", "predictions.csv", "results.csv"):
        assert all(r["schema_version"] == "1" for r in read_table(whole / name))


def test_no_image_in_two_subsets_of_a_run(whole: Path) -> None:
    table = pd.read_csv(whole / "predictions.csv")
    assert not table.duplicated(["run", "image"]).any()


def test_results_agree_with_predictions(whole: Path) -> None:
    table = pd.read_csv(whole / "predictions.csv")
    for row in read_table(whole / "results.csv"):
        for subset in ("train", "validation", "test"):
            part = table[(table["run"] == row["run"]) & (table["subset"] == subset)]
            assert float(row[f"{subset}_accuracy"]) == pytest.approx((part["label"] == part["predicted"]).mean())


def test_second_call_repeats_nothing(whole: Path, data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before, content = times(out), (out / "predictions.csv").read_bytes()
    (out / "predictions.csv").unlink()
    assert run_study(tiny_recipe(GRID), data, str(tiny_weights), out) == Outcome(2, 2, {})
    assert times(out) == before
    assert (out / "predictions.csv").read_bytes() == content


def test_folds_seeds_and_architectures(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(
        {
            "model.architectures": ["test_resnet", "test_efficientnet"],
            "split.kind": "kfold",
            "split.folds": 3,
            "training.seeds": [0, 1],
            "training.epochs": 1,
        }
    )
    outcome = run_study(recipe, data, str(tiny_weights), tmp_path / "out")
    assert outcome == Outcome(12, 0, {})
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    tested = table[table["subset"] == "test"].groupby(["architecture", "seed"])["image"]
    assert (tested.nunique() == 21).all()
    assert (tested.size() == 21).all()


def test_progress_adds_up(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    class Counting(Reporter):
        def __init__(self) -> None:
            self.stages: list[list[Any]] = []
            self.done: list[tuple[int, int]] = []

        def stage(self, title: str, total: int) -> None:
            self.stages.append([title, total, 0])

        def advance(self, steps: int = 1) -> None:
            self.stages[-1][2] += steps

        def runs(self, done: int, total: int) -> None:
            self.done.append((done, total))

    reporter = Counting()
    recipe = tiny_recipe({**GRID, "training.epochs": 30, "training.learning_rate": 0.5})
    run_study(recipe, data, str(tiny_weights), tmp_path / "out", reporter=reporter)
    assert all(done == total for _, total, done in reporter.stages), reporter.stages
    assert reporter.done[-1] == (2, 2)


# Killed


def in_a_process(target: Callable[[], object]) -> int:
    """Run something in a process of its own; its exit code, negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=target)
    process.start()
    process.join(120)
    if process.exitcode is None:
        process.kill()
        pytest.fail("the process hangs")
    return int(process.exitcode)


def die(*arguments: object, **options: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(module: Any, name: str, call: int, before: bool = True) -> None:
    """Replace a function so that the process is killed at its n-th call, before or after it does its work."""
    original, calls = getattr(module, name), [0]

    def replaced(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and before:
            die()
        result = original(*arguments, **options)
        if calls[0] == call:
            die()
        return result

    setattr(module, name, replaced)


def kill_at_rename_of_a_folder() -> None:
    original = os.replace

    def replaced(source: Any, target: Any) -> None:
        if os.path.isdir(source):
            die()
        original(source, target)

    os.replace = replaced  # type: ignore[assignment]


def moments() -> dict[str, Callable[[], None]]:
    from sonobreast.data import split as splits
    from sonobreast.training import fit, fitted, frozen

    return {
        "inside the very first file": lambda: kill_at(os, "replace", 1),
        "while the images are read": lambda: kill_at(manifests, "decode", 5),
        "before the manifest": lambda: kill_at(manifests, "write", 1),
        "after the manifest": lambda: kill_at(manifests, "write", 1, before=False),
        "inside the manifest": lambda: kill_at(manifests, "write_table", 1),
        "after the split": lambda: kill_at(splits, "write", 1, before=False),
        "before the backbone": lambda: kill_at(study, "save", 1),
        "in the first features": lambda: kill_at(frozen, "network_input", 1),
        "in the views": lambda: kill_at(frozen, "network_input", 3),
        "in the first run": lambda: kill_at(fitted, "check_finite", 2),
        "between two runs": lambda: kill_at(study, "write_run", 1, before=False),
        "while a run is written": lambda: kill_at(fit, "write_json", 2),
        "before a run gets its name": kill_at_rename_of_a_folder,
        "while the second run is written": lambda: kill_at(fit, "save", 2),
        "before the tables": lambda: kill_at(study, "collect", 1),
        "between the tables": lambda: kill_at(study, "write_table", 1),
        "before the end": lambda: kill_at(study, "collect", 1, before=False),
    }


@posix
@pytest.mark.parametrize("moment", moments())
def test_killed_study_goes_on(moment: str, whole: Path, data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def killed() -> None:
        moments()[moment]()
        run_study(tiny_recipe(GRID), data, str(tiny_weights), out)

    assert in_a_process(killed) == -signal.SIGKILL
    runs = list((out / "runs").glob("[!.]*")) if (out / "runs").exists() else []
    assert all(is_finished(p) for p in runs), "a half-written run stands under its name"
    for run in runs:
        load_run(run)
    before = times(out) if runs else {}
    outcome = run_study(tiny_recipe(GRID), data, str(tiny_weights), out)
    assert outcome == Outcome(2, len(runs), {})
    after = times(out)
    assert {k: after[k] for k in before} == before, "a finished run was repeated"
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()
    for name in ("split.csv",):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert visible(out) == visible(whole)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_study_killed_again_and_again(seed: int, whole: Path, data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """At random moments, until it comes to its end."""
    import random

    moment = random.Random(seed)
    out = tmp_path / "out"

    def call() -> None:
        run_study(tiny_recipe(GRID), data, str(tiny_weights), out)

    for _ in range(40):
        process = multiprocessing.get_context("fork").Process(target=call)
        process.start()
        process.join(moment.uniform(0.05, 1.5))
        if process.exitcode is None:
            process.kill()
            process.join()
            time.sleep(0.01)
        else:
            assert process.exitcode == 0
            break
    assert run_study(tiny_recipe(GRID), data, str(tiny_weights), out).failed == {}
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()


def test_interrupt_leaves_what_is_finished(
    whole: Path, data: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    original, calls = study.write_run, [0]

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(study, "write_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(tiny_recipe(GRID), data, str(tiny_weights), out)
    monkeypatch.undo()
    before = times(out)
    assert len(before) == 6
    assert run_study(tiny_recipe(GRID), data, str(tiny_weights), out) == Outcome(2, 1, {})
    assert before.items() <= times(out).items()
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()


@pytest.mark.parametrize("lost", ["metrics.json", "weights.safetensors", "predictions.csv", "config.yaml"])
def test_run_that_lost_a_file_is_not_finished(
    lost: str, whole: Path, data: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "runs" / "test_resnet-adam-r0-f0-s0" / lost).unlink()
    assert run_study(tiny_recipe(GRID), data, str(tiny_weights), out) == Outcome(2, 1, {})
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()


# Another study in the folder


def refused(recipe: Recipe, data: Path, weights: Path, out: Path, said: str) -> SonobreastError:
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(SonobreastError, match=said) as caught:
        run_study(recipe, data, str(weights), out)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"} == {
        p: c for p, c in before.items() if p.name != ".lock"
    }, "a refused study changed the folder"
    return caught.value


@pytest.mark.parametrize(
    "changes",
    [
        {"training.learning_rate": 0.004},
        {"preprocess.interpolation": "nearest"},
        {"split.seed": 1},
        {"training.seeds": [0, 1]},
        {"training.early_stopping": None},
    ],
)
def test_other_settings_are_refused(
    changes: dict[str, Any], whole: Path, data: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    error = refused(tiny_recipe({**GRID, **changes}), data, tiny_weights, out, "another study")
    assert next(iter(changes)) in error.what
    assert "--out" in error.remedy


def test_a_study_from_before_a_setting_existed_goes_on(
    whole: Path, data: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    content = yaml.safe_load((out / "config.yaml").read_text())
    del content["recipe"]["segmentation"]
    (out / "config.yaml").write_text(yaml.safe_dump(content))
    assert run_study(tiny_recipe(GRID), data, str(tiny_weights), out).reused == 2
    del content["recipe"]["training"]["learning_rate"]  # the study's own is not the default
    (out / "config.yaml").write_text(yaml.safe_dump(content))
    refused(tiny_recipe(GRID), data, tiny_weights, out, "another study")


def test_changed_data_are_refused(whole: Path, data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "data"
    shutil.copytree(whole, out)
    shutil.copytree(data, other)
    assert run_study(tiny_recipe(GRID), other, str(tiny_weights), out).reused == 2, "a copy elsewhere is the same"
    image = next((other / "benign").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    refused(tiny_recipe(GRID), other, tiny_weights, out, "data have changed")
    image.unlink()
    refused(tiny_recipe(GRID), other, tiny_weights, out, "data_fingerprint")


def test_changed_weights_are_refused(whole: Path, data: Path, tmp_path: Path) -> None:
    """Runs of two different pre-trained networks in one table would be compared as if they were one."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "runs" / "test_resnet-sgdm-r0-f0-s0")
    write_weights(tmp_path / "weights", "test_resnet", seed=1)
    with pytest.raises(SonobreastError, match="weights"):
        run_study(tiny_recipe(GRID), data, str(tmp_path / "weights"), out)


def test_changed_split_is_refused(whole: Path, data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    text = (out / "split.csv").read_text()
    (out / "split.csv").write_text(
        text.replace(",test,", ",swap,").replace(",train,", ",test,").replace("swap", "train")
    )
    refused(tiny_recipe(GRID), data, tiny_weights, out, "division into subsets differs")


@pytest.mark.parametrize("text", ["", "a: [", "3", "schema_version: 99\n", "[]"])
def test_damaged_config_is_refused(text: str, whole: Path, data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "config.yaml").write_text(text)
    refused(tiny_recipe(GRID), data, tiny_weights, out, "damaged|version|another study")


@pytest.mark.parametrize("name", ["thesis.docx", "manifest.csv", "runs/x", "data/a.png"])
def test_folder_of_somebody_else_is_refused(name: str, data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("precious")
    refused(tiny_recipe(GRID), data, tiny_weights, out, "not empty")


def test_second_process_is_refused(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with FileLock(out / ".lock"), pytest.raises(SonobreastError, match="another sonobreast process"):
        run_study(tiny_recipe(GRID), data, str(tiny_weights), out)


# What fails


def test_diverging_run_is_recorded_and_the_others_finish(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe({**GRID, "training.epochs": 10, "training.learning_rates": {"sgdm": 1e30}})
    out = tmp_path / "out"
    outcome = run_study(recipe, data, str(tiny_weights), out)
    name = "test_resnet-sgdm-r0-f0-s0"
    assert (outcome.finished, list(outcome.failed)) == (1, [name])
    assert "loss" in outcome.failed[name]
    assert read_json(out / "failed.json")["runs"] == outcome.failed
    assert not (out / "runs" / name).exists()
    assert set(pd.read_csv(out / "predictions.csv")["run"]) == {"test_resnet-adam-r0-f0-s0"}


def test_all_runs_diverge(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe({"training.optimizers": ["sgdm"], "training.epochs": 10, "training.learning_rate": 1e30})
    outcome = run_study(recipe, data, str(tiny_weights), tmp_path / "out")
    assert (outcome.finished, len(outcome.failed)) == (0, 1)
    assert json.loads((tmp_path / "out" / "failed.json").read_text())["runs"] == outcome.failed


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell which file is written")
@pytest.mark.parametrize("place", ["cache", "backbones", "runs", "manifest.csv", "predictions.csv", "config.yaml"])
def test_full_disk(
    place: str, whole: Path, data: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    real = os.fsync

    def fsync(handle: int) -> None:
        target = os.readlink(f"/proc/self/fd/{handle}")
        if place in Path(target).relative_to(out).parts[0] and not os.path.isdir(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SonobreastError, match="No space left") as caught:
        run_study(tiny_recipe(GRID), data, str(tiny_weights), out)
    assert "free some space" in caught.value.remedy
    monkeypatch.undo()
    assert not any(p.name.endswith(".partial") for p in out.rglob("*"))
    assert all(is_finished(p) for p in (out / "runs").glob("[!.]*"))
    run_study(tiny_recipe(GRID), data, str(tiny_weights), out)
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()


def test_fewer_views_for_lack_of_room_are_said_and_recorded(
    whole: Path, data: Path, tiny_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Heard(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr(view_file, "available_memory", lambda: 0)
    monkeypatch.setattr(view_file.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 0))
    out = tmp_path / "out"
    run_study(tiny_recipe(GRID), data, str(tiny_weights), out, reporter=Heard())
    assert any("1 of 2 views are used" in text for text in said)
    for folder, views in ((out, 1), (whole, 2)):
        assert [read_config(p)["views"] for p in (folder / "runs").iterdir()] == [views, views]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training.optimizers": ["adamm"]}, "did you mean adam"),
        ({"model.architectures": ["ResNet50V3"]}, "did you mean"),
        ({"data.classes": ["benign", "cancer"]}, "'cancer' is not in the data"),
        ({"data.subsample": {"benign": 99}}, "draws 99 images"),
        ({"split.kind": "kfold", "split.folds": 20}, "20 folds"),
    ],
)
def test_bad_settings_fail_before_anything_is_written(
    changes: dict[str, Any], said: str, data: Path, tiny_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SonobreastError, match=said):
        run_study(tiny_recipe(changes), data, str(tiny_weights), out)
    assert not out.exists() or {p.name for p in out.iterdir()} <= {".lock"}


def test_frozen_without_weights_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SonobreastError, match="learns nothing"):
        run_study(tiny_recipe(), data, "none", tmp_path / "out")


def test_weights_that_do_not_fit_lose_nothing(data: Path, tiny_weights: Path, tmp_path: Path) -> None:
    """The first network's runs stay; with right weights the study goes on."""
    weights, out = tmp_path / "weights", tmp_path / "out"
    shutil.copytree(tiny_weights, weights)
    file = weights / "test_efficientnet.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:1000])
    recipe = tiny_recipe({"model.architectures": ["test_resnet", "test_efficientnet"], "training.epochs": 1})
    with pytest.raises(SonobreastError, match="cannot be read"):
        run_study(recipe, data, str(weights), out)
    file.write_bytes(content)
    outcome = run_study(recipe, data, str(weights), out)
    assert outcome.finished == 2
    assert outcome.failed == {}


def test_damaged_images_are_said_and_the_rest_goes_on(tiny_weights: Path, tmp_path: Path) -> None:
    said: list[str] = []

    class Listening(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    folder = write_busi(tmp_path / "busi")
    (folder / "benign" / "benign (2).png").write_bytes(b"no image")
    with pytest.raises(SonobreastError, match="strict"):
        run_study(tiny_recipe(GRID), Sources(folder, strict=True), str(tiny_weights), tmp_path / "strict")
    run_study(tiny_recipe(GRID), folder, str(tiny_weights), tmp_path / "out", reporter=Listening())
    assert any("benign (2).png" in line for line in said)
    assert [r["file"] for r in read_table(tmp_path / "out" / "problems.csv")] == ["benign/benign (2).png"]
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 2 * 20


# Names with prefixes


def test_one_backbone_frozen_and_trained(data: Path, tmp_path: Path) -> None:
    """One study, one set of weights, two modes; and what the weights' licence forbids is said."""
    weights = tmp_path / "weights"
    write_weights(weights, "test_resnet", licence="cc-by-nc-4.0")
    said: list[str] = []

    class Listening(Reporter):
        def say(self, text: str) -> None:
            said.append(text)

    recipe = tiny_recipe({"model.architectures": ["frozen:test_resnet", "finetune:test_resnet"], "training.epochs": 1})
    out = tmp_path / "out"
    assert run_study(recipe, data, str(weights), out, images=False, reporter=Listening()) == Outcome(2, 0, {})
    frozen, trained = (out / "runs" / f"{mode}_test_resnet-adam-r0-f0-s0" for mode in ("frozen", "finetune"))
    assert [read_config(f)["recipe"]["model"]["backbone"] for f in (frozen, trained)] == ["frozen", "finetune"]
    files = [set(load_file(f / "weights.safetensors")) for f in (frozen, trained)]
    assert not any(k.startswith("backbone.") for k in files[0])
    assert any(k.startswith("backbone.") for k in files[1])
    assert len(list((out / "backbones").iterdir())) == 1
    for folder in (frozen, trained):
        network, read, classes = load_run(folder)
        assert read.model.backbone == read_config(folder)["recipe"]["model"]["backbone"]
        assert len(classes) == 3
        assert network.backbone.timm_name == "test_resnet"
    assert [r["architecture"] for r in read_table(out / "results.csv")] == list(recipe.model.architectures)
    assert sum("forbids commercial use (cc-by-nc-4.0)" in s for s in said) == 2
    assert run_study(recipe, data, str(weights), out, images=False) == Outcome(2, 2, {})
