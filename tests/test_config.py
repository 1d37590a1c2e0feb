"""Recipes load, extend one another, differ where they say; every mistake is answered with the nearest valid name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sonobreast.config import dump_yaml, leaves, load_recipe, parse_recipe, recipe_names
from sonobreast.errors import SonobreastError

MINIMAL: dict[str, Any] = {"name": "mine", "model": {"architectures": ["ResNet50V2"]}}


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, dict):
        return {prefix: content}
    return {k: v for name, value in content.items() for k, v in flat(value, f"{prefix}.{name}".strip(".")).items()}


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_of_the_package_load(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.title
    again = parse_recipe(yaml.safe_load(dump_yaml(recipe.model_dump(mode="json"))), origin=name)
    assert again == recipe


def test_the_two_of_the_paper_differ_in_the_scaling_alone() -> None:
    one, two = (flat(load_recipe(n).model_dump(mode="json")) for n in ("aulia2026", "aulia2026-normalised"))
    differing = {k for k in one.keys() | two.keys() if one.get(k) != two.get(k)}
    assert "preprocess.scaling" in differing
    assert {k for k in differing if not k.startswith("ours.")} == {"preprocess.scaling", "name", "title"}
    assert {k for k in differing if k.startswith("ours.")} <= {"ours.preprocess.scaling"}
    assert (one["preprocess.scaling"], two["preprocess.scaling"]) == ("unit", "weights")


def test_the_paper_s_settings() -> None:
    recipe = load_recipe("aulia2026")
    assert recipe.model.architectures == ("ResNet50V2", "MobileNetV2")
    assert recipe.training.optimizers == ("adam", "rmsprop", "sgdm")
    assert (recipe.training.learning_rate, recipe.training.batch_size, recipe.training.epochs) == (1e-4, 32, 50)
    assert (recipe.head.hidden, recipe.head.dropout) == ((128,), 0.3)
    assert (recipe.augment.rotation, recipe.augment.zoom, recipe.augment.shift) == (15, 0.1, 0.1)
    assert recipe.augment.horizontal_flip
    assert recipe.preprocess.size == 224
    assert recipe.split.grouping == "none"


def test_every_choice_of_ours_is_a_setting_with_a_reason() -> None:
    recipe = load_recipe("aulia2026")
    keys = set(leaves(recipe.model_dump(mode="json", exclude={"ours"})))
    assert set(recipe.ours) <= keys
    assert all(recipe.ours.values())
    for key in (
        "training.momentum",
        "training.early_stopping.monitor",
        "training.early_stopping.patience",
        "training.class_weights",
        "preprocess.interpolation",
        "augment.fill",
        "data.subsample_seed",
        "head.init",
    ):
        assert key in recipe.ours, key


def write(path: Path, content: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


def test_extends_merges_groups(tmp_path: Path) -> None:
    child = write(
        tmp_path / "child.yaml", {"extends": "aulia2026", "name": "child", "training": {"epochs": 2, "seeds": [1, 2]}}
    )
    recipe, base = load_recipe(child), load_recipe("aulia2026")
    assert recipe.training.seeds == (1, 2)
    same = {"epochs": 2, "seeds": (1, 2)}
    assert recipe == base.model_copy(update={"name": "child", "training": base.training.model_copy(update=same)})


def test_extends_a_file_beside_it(tmp_path: Path) -> None:
    write(tmp_path / "recipes" / "base.yaml", {**MINIMAL, "training": {"epochs": 7}})
    child = write(tmp_path / "recipes" / "child.yaml", {"extends": "base.yaml", "name": "child"})
    assert load_recipe(child).training.epochs == 7


def test_extends_in_a_circle(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    write(one, {**MINIMAL, "extends": str(two)})
    write(two, {**MINIMAL, "extends": str(one)})
    with pytest.raises(SonobreastError, match="circle"):
        load_recipe(str(one))


@pytest.mark.parametrize("name", ["aulia", "Aulia2026", "aulia-2026"])
def test_unknown_recipe_names_the_nearest(name: str) -> None:
    with pytest.raises(SonobreastError, match="did you mean aulia2026"):
        load_recipe(name)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not a mapping"),
        ("- a\n- b\n", "not a mapping"),
        ("a: [1, 2\n", "not valid YAML"),
        ("name: !!python/object/apply:os.system ['true']\n", "not valid YAML"),
        ("name: mine\n", "'model' is missing"),
        ("1: 2\nname: mine\n", "not valid"),
    ],
)
def test_damaged_recipe(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SonobreastError, match=said):
        load_recipe(write(tmp_path / "mine.yaml", text))


def test_recipe_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SonobreastError, match="cannot be read"):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("trainning", "training"),
        ("training.epoch", "training.epochs"),
        ("augment.rotatoin", "augment.rotation"),
        ("training.early_stopping.patiense", "training.early_stopping.patience"),
        ("split.grouping_", "split.grouping"),
        ("model.architecture", "model.architectures"),
        ("data.clases", "data.classes"),
    ],
)
def test_unknown_key_names_the_nearest(tmp_path: Path, key: str, meant: str) -> None:
    content: dict[str, Any] = {**MINIMAL, "model": dict(MINIMAL["model"])}
    inner = content
    *parts, last = key.split(".")
    for part in parts:
        inner = inner.setdefault(part, {})
    inner[last] = 1
    with pytest.raises(SonobreastError) as caught:
        load_recipe(write(tmp_path / "mine.yaml", content))
    assert repr(key) in caught.value.what
    assert meant in caught.value.what.split("did you mean")[1]
    with pytest.raises(SonobreastError) as caught:
        load_recipe("aulia2026", [f"{key}=1"])
    assert meant in caught.value.what.split("did you mean")[1]


@pytest.mark.parametrize(
    "override",
    [
        "training.epochs=many",
        "training.epochs=1.5",
        "training.epochs=0",
        "training.learning_rate=-1",
        "training.learning_rate=nan",
        "training.learning_rate=inf",
        "training.seeds=[]",
        "training.seeds=[0,0]",
        "training.optimizers=[adam,adam]",
        "training.momentum=1",
        "preprocess.size=10",
        "preprocess.interpolation=cubic",
        "split.validation=0",
        "split.validation=0.9",
        "split.folds=1",
        "augment.views=0",
        "augment.zoom=2",
        "head.dropout=1",
        "head.hidden=128",
        "model.architectures=[]",
        "model.trainable=0",
        "model.trainable=-1",
        "model.trainable=some",
        "training=3",
        "name=a/b",
        "schema_version=2",
    ],
)
def test_values_that_do_not_fit(override: str) -> None:
    key = override.split("=")[0]
    with pytest.raises(SonobreastError, match="not valid") as caught:
        load_recipe("aulia2026", [override])
    assert key.split(".")[-1] in caught.value.what or "validation + test" in caught.value.what


@pytest.mark.parametrize(
    ("override", "get", "value"),
    [
        ("training.learning_rate=1e-4", lambda r: r.training.learning_rate, 1e-4),
        ("training.learning_rate=1E-4", lambda r: r.training.learning_rate, 1e-4),
        ("training.learning_rate=.001", lambda r: r.training.learning_rate, 1e-3),
        ("training.epochs=3", lambda r: r.training.epochs, 3),
        ("data.subsample=null", lambda r: r.data.subsample, None),
        ("training.early_stopping=null", lambda r: r.training.early_stopping, None),
        ("training.seeds=[0, 1,2]", lambda r: r.training.seeds, (0, 1, 2)),
        ("training.optimizers=[adam]", lambda r: r.training.optimizers, ("adam",)),
        ("data.subsample={benign: 5, malignant: 6}", lambda r: r.data.subsample, {"benign": 5, "malignant": 6}),
        ("data.subsample.benign=5", lambda r: r.data.subsample["benign"], 5),
        ("data.subsample.a.b=5", lambda r: r.data.subsample["a.b"], 5),
        ("training.learning_rates.sgdm=1e-2", lambda r: r.training.learning_rates, {"sgdm": 0.01}),
        ("training.learning_rates={sgdm: 1e-2}", lambda r: r.training.learning_rates, {"sgdm": 0.01}),
        ("augment.horizontal_flip=false", lambda r: r.augment.horizontal_flip, False),
        ("title=a=b", lambda r: r.title, "a=b"),
        ("ours.head.dropout=as we like it", lambda r: r.ours["head.dropout"], "as we like it"),
        ("model.trainable=2", lambda r: r.model.trainable, 2),
        ("model.trainable=all", lambda r: r.model.trainable, "all"),
    ],
)
def test_overrides(override: str, get: Any, value: Any) -> None:
    found = get(load_recipe("aulia2026", [override]))
    assert found == value
    assert type(found) is type(value)


def test_later_override_wins_and_the_recipe_of_the_package_stays() -> None:
    recipe = load_recipe("aulia2026", ["training.epochs=3", "training.batch_size=4", "training.epochs=5"])
    assert (recipe.training.epochs, recipe.training.batch_size) == (5, 4)
    assert load_recipe("aulia2026").training.epochs == 50


@pytest.mark.parametrize("override", ["training.epochs", "=3", "training.epochs=[1", ""])
def test_override_that_is_none(override: str) -> None:
    with pytest.raises(SonobreastError):
        load_recipe("aulia2026", [override])


def test_ours_must_name_a_setting() -> None:
    with pytest.raises(SonobreastError, match=r"ours\.head\.dropuot names no setting; did you mean head\.dropout"):
        parse_recipe({**MINIMAL, "ours": {"head.dropuot": "why"}}, origin="mine")


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_recipe("aulia2026").training.epochs = 3


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[frozen: MobileNetV2, 'finetune:MobileNetV2']", ("frozen:MobileNetV2", "finetune:MobileNetV2")),
        ("[frozen:]", ("frozen:",)),
        ("[ResNet-18, {joint: resnet18}]", ("ResNet-18", "joint:resnet18")),
    ],
)
def test_a_prefix_may_be_followed_by_a_space(text: str, meant: tuple[str, ...]) -> None:
    recipe = load_recipe("aulia2026", [f"model.architectures={text}"])
    assert recipe.model.architectures == meant


def test_the_recipes_of_networks_name_networks_that_can_be_trained() -> None:
    from sonobreast.models.networks import architecture, check_architectures, recipe_for

    for name in ("transfer", "csanet", "comparators", "best"):
        recipe = load_recipe(name)
        check_architectures(recipe, "hub")
        assert recipe.split.grouping == "group"
        assert recipe.head.init == "torch"  # other starts take short trainings long to leave
    transfer = load_recipe("transfer")
    assert [recipe_for(transfer, a).model.backbone for a in transfer.model.architectures] == ["frozen", "finetune"]
    assert load_recipe("csanet").training.optimizers == ("nadam",)
    compared = [architecture(a) for a in load_recipe("comparators").model.architectures]
    assert {a.kind for a in compared} == {"network", "classical"}
    assert len(compared) == 20
