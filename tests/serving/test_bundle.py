"""A bundle that was altered is refused and the file named; a hostile one gets a sentence; nothing heavy is imported."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from sonobreast.errors import SonobreastError
from sonobreast.serving.bundle import Bundle, open_bundle, write_bundle
from sonobreast.serving.predictor import load_predictor
from sonobreast.serving.self_test import check

HEAVY = ("torch", "pandas", "scipy", "sklearn", "skimage", "matplotlib", "statsmodels", "onnx", "timm", "lightning")


@pytest.fixture
def copy(single: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(single.folder, tmp_path / "bundle")
    return tmp_path / "bundle"


def sign(folder: Path) -> None:
    """What a forger does: digests that fit."""
    about = json.loads((folder / "bundle.json").read_text())
    if isinstance(about.get("files"), dict):
        for name in about["files"]:
            if (folder / name).is_file() and ".." not in name:
                content = (folder / name).read_bytes()
                about["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        (folder / "bundle.json").write_text(json.dumps(about))
    seal(folder)


def seal(folder: Path) -> None:
    digest = hashlib.sha256((folder / "bundle.json").read_bytes()).hexdigest()
    (folder / "bundle.sha256").write_text(f"{digest}  bundle.json\n")


def test_a_bundle_passes_its_own_test(ensemble: Bundle, single: Bundle) -> None:
    for one in (ensemble, single):
        found = check(one.folder)
        assert found.difference < 1e-5
        assert found.bundle.fingerprint == one.fingerprint
        assert hashlib.sha256((one.folder / "bundle.json").read_bytes()).hexdigest() == one.fingerprint


def test_sha256sum_reads_the_digest(single: Bundle) -> None:
    done = subprocess.run(["sha256sum", "-c", "bundle.sha256"], cwd=single.folder, capture_output=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "name",
    ["model.onnx", "bundle.json", "bundle.sha256", "model_card.md", "self_test/image.png", "self_test/expected.json"],
)
def test_a_flipped_bit_in_any_file_is_refused_and_the_file_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    for at in {0, len(content) // 2, len(content) - 1}:
        changed = content.copy()
        changed[at] ^= 1
        (copy / name).write_bytes(changed)
        with pytest.raises(SonobreastError) as caught:
            check(copy)
        named = "bundle.json" if name == "bundle.sha256" else name
        assert str(caught.value.file).endswith((named, str(copy)))
    (copy / name).write_bytes(content)
    open_bundle(copy)


def test_files_that_are_missing_added_or_links_are_refused(copy: Path, tmp_path: Path) -> None:
    card = copy / "model_card.md"
    text = card.read_bytes()
    card.unlink()
    with pytest.raises(SonobreastError, match=r"model_card\.md is missing"):
        open_bundle(copy)
    (tmp_path / "elsewhere").write_bytes(text)
    card.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SonobreastError, match="link"):
        open_bundle(copy)
    card.unlink()
    card.write_bytes(text)
    (copy / "self_test" / "more.py").write_text("")
    with pytest.raises(SonobreastError, match=r"more\.py does not belong"):
        open_bundle(copy)


def test_no_bundle_at_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", tmp_path / "file"):
        (tmp_path / "file").write_text("x")
        with pytest.raises(SonobreastError, match="no bundle"):
            open_bundle(folder)


def rule(**changes: object) -> dict[str, object]:
    classes = ["benign", "malignant", "normal"]
    plain = {"classes": classes, "temperature": 1.0, "thresholds": {}, "alpha": 0.1}
    return {**plain, "quantiles": dict.fromkeys(classes), **changes}


def shorter(statistics: dict[str, Any]) -> None:
    """Statistics that fit one another and no member."""
    statistics.update({k: statistics[k][:-1] for k in ("mean", "spread")})
    statistics["axes"] = [axis[:-1] for axis in statistics["axes"]]


Change = Callable[[dict[str, Any]], object]
CHANGES: dict[str, Change] = {
    "a version to come": lambda a: a.update(schema_version=99),
    "no version": lambda a: a.pop("schema_version"),
    "no classes": lambda a: a.update(classes=[]),
    "classes twice": lambda a: a.update(classes=["a", "a", "b"]),
    "classes that are numbers": lambda a: a.update(classes=[1, 2, 3]),
    "fewer classes": lambda a: a.update(classes=["benign", "malignant"]),
    "another intended use": lambda a: a.update(intended_use="diagnosis"),
    "temperature of nothing": lambda a: a.update(decision_rule=rule(temperature=0.0)),
    "temperature as text": lambda a: a.update(decision_rule=rule(temperature="1.0")),
    "a rule of other classes": lambda a: a.update(decision_rule=rule(classes=["normal", "malignant", "benign"])),
    "a rule without temperature": lambda a: a.update(decision_rule={"classes": a["classes"]}),
    "threshold above one": lambda a: a["thresholds"][0].update(value=1.5),
    "scaling outside": lambda a: a["preprocess"].update(scaling="weights"),
    "unknown preprocessing": lambda a: a["preprocess"].update(run="rm"),
    "size that the network lacks": lambda a: a["preprocess"].update(size=96),
    "preprocessing missing": lambda a: a.pop("preprocess"),
    "a path out of the folder": lambda a: a["files"].update({"../evil": {"sha256": "0" * 64, "bytes": 1}}),
    "an absolute path": lambda a: a["files"].update({"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}),
    "a windows path": lambda a: a["files"].update({"..\\evil": {"sha256": "0" * 64, "bytes": 1}}),
    "a file that is not there": lambda a: a["files"].update({"more": {"sha256": "0" * 64, "bytes": 1}}),
    "no model": lambda a: a["files"].pop("model.onnx"),
    "digest that is none": lambda a: a["files"]["model.onnx"].update(sha256="x"),
    "files as a list": lambda a: a.update(files=[]),
    "another library": lambda a: a.update(requirements=["os.system"]),
    "outputs that are not there": lambda a: a["outputs"].append("mask") or a.update(mask_threshold=0.5),
    "a mask without threshold": lambda a: a["outputs"].append("mask"),
    "outputs twice": lambda a: a["outputs"].append("logits"),
    "features that do not fit": lambda a: a["members"][0].update(features=3),
    "no members": lambda a: a.update(members=[]),
    "domain as text": lambda a: a.update(domain="x"),
    "decision rule as a list": lambda a: a.update(decision_rule=[1]),
    "a domain of a member that is not there": lambda a: a["domain"]["networks"][0].update(member=1),
    "a domain twice": lambda a: a["domain"]["networks"].append(a["domain"]["networks"][0]),
    "a domain of nobody": lambda a: a["domain"].update(networks=[]),
    "a domain without axes": lambda a: a["domain"]["networks"][0].update(axes=[], variance=[]),
    "a domain of other features": lambda a: shorter(a["domain"]["networks"][0]),
    "a spread that is nothing in single precision": lambda a: a["domain"]["networks"][0]["spread"].insert(
        0, a["domain"]["networks"][0]["spread"].pop() * 0 + 1e-300
    ),
    "a mean beyond single precision": lambda a: a["domain"]["networks"][0]["mean"].insert(
        0, a["domain"]["networks"][0]["mean"].pop() * 0 + 1e300
    ),
    "quantiles of others": lambda a: a.update(decision_rule=rule(quantiles={"x": 0.5})),
}


def test_a_rule_that_fits_is_taken(copy: Path) -> None:
    about = json.loads((copy / "bundle.json").read_text())
    about["decision_rule"] = rule(calibration_source="out-of-fold test images", runs=2)
    (copy / "bundle.json").write_text(json.dumps(about))
    seal(copy)
    assert load_predictor(copy).predict(copy / "self_test" / "image.png").conformal == tuple(about["classes"])


@pytest.mark.parametrize("change", CHANGES)
def test_a_forged_description_is_refused_in_words(copy: Path, change: str) -> None:
    file = copy / "bundle.json"
    about = json.loads(file.read_text())
    CHANGES[change](about)
    file.write_text(json.dumps(about))
    seal(copy)
    with pytest.raises(SonobreastError) as caught:
        check(copy)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"null", b"{", b'{"schema_version": NaN}', b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1}'],
)
def test_bytes_that_are_no_description_are_refused(copy: Path, content: bytes) -> None:
    (copy / "bundle.json").write_bytes(content)
    seal(copy)
    with pytest.raises(SonobreastError):
        open_bundle(copy)


def test_a_bundle_may_be_reached_by_a_link(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(copy)
    assert check(tmp_path / "current").bundle.fingerprint == open_bundle(copy).fingerprint
    (copy / "self_test").rename(tmp_path / "elsewhere")
    (copy / "self_test").symlink_to(tmp_path / "elsewhere")
    for folder in (copy, tmp_path / "current"):
        with pytest.raises(SonobreastError, match=r"belong|link"):
            open_bundle(folder)


@pytest.mark.parametrize(("name", "fine"), [("", False), ("benign\nor not", False), ("gutartig, sicher", True)])
def test_a_class_has_a_name_of_one_line(copy: Path, name: str, fine: bool) -> None:
    about = json.loads((copy / "bundle.json").read_text())
    about["classes"][0] = name
    about["decision_rule"] = None
    (copy / "bundle.json").write_text(json.dumps(about))
    seal(copy)
    if fine:
        assert open_bundle(copy).about.classes[0] == name
        return
    with pytest.raises(SonobreastError, match=r"classes|name of a class"):
        open_bundle(copy)


def test_a_folder_of_any_name(copy: Path, tmp_path: Path) -> None:
    odd = tmp_path / "ein Bündel, 'neu' [b]"
    copy.rename(odd)
    assert check(odd).difference < 1e-5


def test_a_huge_network_is_not_read(copy: Path) -> None:
    size = 1 << 40
    with (copy / "model.onnx").open("r+b") as stream:
        stream.truncate(size)  # a sparse file
    about = json.loads((copy / "bundle.json").read_text())
    about["files"]["model.onnx"]["bytes"] = size
    (copy / "bundle.json").write_text(json.dumps(about))
    seal(copy)
    with pytest.raises(SonobreastError, match="larger than any network"):
        load_predictor(copy)


def test_a_stop_while_writing_leaves_nothing_and_what_a_kill_left_goes(
    single: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: (single.folder / name).read_bytes() for name in single.about.files}
    about = {k: v for k, v in json.loads((single.folder / "bundle.json").read_text()).items() if k != "files"}
    calls: list[int] = []

    def stop(number: int) -> None:
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", stop)
        with pytest.raises(KeyboardInterrupt):
            write_bundle(tmp_path / "b", about, files)
    assert not list(tmp_path.iterdir())
    (tmp_path / ".b.partial").mkdir()
    (tmp_path / ".b.partial" / "more").write_text("from a kill")
    assert write_bundle(tmp_path / "b", about, files).fingerprint == single.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert write_bundle(Path(), about, files).folder == tmp_path / "empty"


def test_a_huge_description_is_not_read(copy: Path) -> None:
    with (copy / "bundle.json").open("r+b") as stream:
        stream.truncate(1 << 40)  # a sparse file
    with pytest.raises(SonobreastError, match="MiB"):
        open_bundle(copy)


def test_whatever_a_value_becomes_there_is_a_sentence_or_a_bundle(copy: Path) -> None:
    file = copy / "bundle.json"
    original = json.loads(file.read_text())
    strange: list[Any] = [None, True, -1, 1e308, "", "x" * 10_000, [], {}, [[]], {"a": None}, "\ud800"]
    refused = 0
    for key in original:
        for value in strange:
            file.write_text(json.dumps({**original, key: value}))
            seal(copy)
            try:
                open_bundle(copy, only=())
            except SonobreastError as error:
                refused += 1
                str(error).encode()
    assert refused > 0.6 * len(original) * len(strange)


def test_a_network_that_keeps_weights_elsewhere_is_never_opened(copy: Path) -> None:
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [1.0])
    tensor.data_location = TensorProto.EXTERNAL
    graph = helper.make_graph([helper.make_node("Relu", ["pixels"], ["logits"])], "g", [], [], [tensor])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    (copy / "model.onnx").write_bytes(made.SerializeToString())
    sign(copy)
    with pytest.raises(SonobreastError, match="another file"):
        check(copy)


def test_another_network_fails_the_self_test(copy: Path, ensemble: Bundle) -> None:
    expected = copy / "self_test" / "expected.json"
    content = json.loads(expected.read_text())
    content["probability"]["benign"] += 0.01
    expected.write_text(json.dumps(content))
    sign(copy)
    with pytest.raises(SonobreastError, match="self-test differs"):
        check(copy)
    for broken in ('{"probability": {"benign": 1}}', "[]", '{"probability": {"benign": "NaN"}}', "{"):
        expected.write_text(broken)
        sign(copy)
        with pytest.raises(SonobreastError, match="self-test"):
            check(copy)


def test_a_network_that_is_damaged_but_signed_is_refused(copy: Path) -> None:
    content = (copy / "model.onnx").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(5):
        changed = bytearray(content)
        changed[int(rng.integers(0, 400))] ^= 255
        (copy / "model.onnx").write_bytes(changed)
        sign(copy)
        try:
            check(copy)
        except SonobreastError:
            continue


@pytest.mark.parametrize("module", ["bundle", "predictor", "inference", "readers", "overlay"])
def test_serving_needs_the_base_install_alone(module: str) -> None:
    code = f"import sys, sonobreast.serving.{module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(done.stdout.split())


def test_commands_run_where_nothing_else_is_installed(ensemble: Bundle, tmp_path: Path) -> None:
    image = ensemble.folder / "self_test" / "image.png"
    code = (
        "import sys\n"
        f"for name in {HEAVY!r}: sys.modules[name] = None\n"
        "from sonobreast.cli import _call\n"
        f"sys.exit(_call(['bundle', 'check', {str(ensemble.folder)!r}], True) or _call(['predict', "
        f"{str(ensemble.folder)!r}, {str(image)!r}, '--out', {str(tmp_path / 'i.csv')!r}, '--json', '--overlays', "
        f"{str(tmp_path / 'o')!r}], True))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["predicted"] in ensemble.about.classes
    assert len((tmp_path / "i.csv").read_text().splitlines()) == 2
    assert list((tmp_path / "o").rglob("*.png"))


def test_a_recipe_that_fills_marks_says_that_it_needs_scipy(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = json.loads((copy / "bundle.json").read_text())
    about["preprocess"]["inpaint_marks"] = True
    about["requirements"] = ["scipy"]
    (copy / "bundle.json").write_text(json.dumps(about))
    sign(copy)
    load_predictor(copy)
    for name in [m for m in sys.modules if m.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SonobreastError, match="scipy"):
        load_predictor(copy)
