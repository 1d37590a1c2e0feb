"""Every name means one network, and a name that means none says what was meant."""

from __future__ import annotations

import pytest
import timm
from tests.fake import tiny_recipe

from sonobreast.errors import SonobreastError
from sonobreast.models import networks
from sonobreast.models.networks import NETWORKS, Entry, architecture, check_architectures, recipe_for
from sonobreast.models.zoo import load_backbone, timm_name
from sonobreast.records import Run


def test_names_of_the_table_differ_and_are_known() -> None:
    assert len({e.name.lower() for e in NETWORKS}) == len(NETWORKS)
    assert len({Run(architecture=e.name, optimizer="adam").id.lower() for e in NETWORKS}) == len(NETWORKS)
    for entry in NETWORKS:
        assert entry.paper
        assert entry.timm_name is None or timm.is_model(entry.timm_name), entry.name
        assert not (entry.joint and entry.classical)


@pytest.mark.parametrize("entry", NETWORKS, ids=lambda e: e.name)
def test_every_name_is_read_in_any_case(entry: object) -> None:
    name: str = entry.name  # type: ignore[attr-defined]
    found = architecture(name)
    assert found.name == name
    assert found.entry is entry
    assert architecture(name.upper()) == architecture(name.lower()) == found
    assert found.mode is None


@pytest.mark.parametrize(
    ("name", "timm", "kind", "gates", "mode"),
    [
        ("MobileNetV2", "mobilenetv2_100", "network", False, None),
        ("frozen:MobileNetV2", "mobilenetv2_100", "network", False, "frozen"),
        ("FineTune:mobilenetv2", "mobilenetv2_100", "network", False, "finetune"),
        ("convnext_tiny", "convnext_tiny", "network", False, None),
        ("resnet50.a1_in1k", "resnet50.a1_in1k", "network", False, None),
        ("joint:MobileNetV2", "mobilenetv2_100", "joint", False, None),
        ("finetune:joint:resnet18", "resnet18", "joint", False, "finetune"),
        ("modresnet101", "resnet101", "joint", False, None),
        ("joint:modresnet101", "resnet101", "joint", False, None),
        ("AttentionUNet", "resnet34", "joint", True, None),
        ("RandomForest", None, "classical", False, None),
        ("DeepFusion", "darknet53", "classical", False, None),
        ("DeepFusion:DenseNet169", "densenet169", "classical", False, None),
        ("deepfusion:test_resnet", "test_resnet", "classical", False, None),
    ],
)
def test_what_a_name_means(name: str, timm: str | None, kind: str, gates: bool, mode: str | None) -> None:
    found = architecture(name)
    assert (found.timm_name, found.kind, found.gates, found.mode) == (timm, kind, gates, mode)
    if timm is not None:
        assert timm_name(name) == timm


def test_only_one_forest_looks_at_masks() -> None:
    assert [e.name for e in NETWORKS if architecture(e.name).shape] == ["RandomForest+shape"]


@pytest.mark.parametrize("name", ["", " ", "frozen:", "finetune:joint:", "joint:", "DeepFusion:", "frozen: "])
def test_a_prefix_needs_a_name(name: str) -> None:
    with pytest.raises(SonobreastError, match="prefix without the name") as caught:
        architecture(name)
    assert "sonobreast models" in caught.value.remedy


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("frozen:MobilNetV2", "MobileNetV2"),
        ("joint:resnet19", "resnet18"),
        ("Random-Forest", "RandomForest"),
        ("DeepFusion:darknet35", "darknet53"),
        ("resnet50.a1_in1", "resnet50"),
        ("freeze:MobileNetV2", "MobileNetV2"),
    ],
)
def test_a_mistyped_name_gets_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(SonobreastError, match="no network is called") as caught:
        architecture(name)
    assert meant in caught.value.what.split(";")[1]
    assert name in caught.value.what


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("frozen:RandomForest", "no backbone"),
        ("finetune:DeepFusion", "always frozen"),
        ("joint:RandomForest", "cannot segment"),
        ("DeepFusion:RandomForest", "is none"),
        ("DeepFusion:modresnet101", "is none"),
    ],
)
def test_a_prefix_that_does_not_fit(name: str, said: str) -> None:
    with pytest.raises(SonobreastError, match=said) as caught:
        architecture(name)
    assert caught.value.remedy


def test_a_forest_has_no_backbone() -> None:
    with pytest.raises(SonobreastError, match="no network"):
        load_backbone("RandomForest", "none")


def test_a_prefix_changes_the_recipe_of_its_architecture_alone() -> None:
    recipe = tiny_recipe({"model.architectures": ["frozen:test_resnet", "finetune:test_resnet", "test_efficientnet"]})
    assert recipe.model.backbone == "frozen"
    assert recipe_for(recipe, "frozen:test_resnet") is recipe
    assert recipe_for(recipe, "test_efficientnet") is recipe
    trained = recipe_for(recipe, "finetune:test_resnet")
    assert trained.model.backbone == "finetune"
    assert trained.training == recipe.training


# What is refused before anything is read


def refused(names: list[str], said: str, weights: str = "hub", backbone: str = "finetune") -> None:
    recipe = tiny_recipe({"model.architectures": names, "model.backbone": backbone})
    with pytest.raises(SonobreastError, match=said) as caught:
        check_architectures(recipe, weights)
    assert caught.value.remedy


def test_the_same_network_twice() -> None:
    refused(["ResNet-18", "resnet18"], "same network")
    refused(["modresnet101", "joint:ResNet-101"], "same network")
    refused(["finetune:resnet18", "ResNet-18"], "same network")
    refused(["DeepFusion", "DeepFusion:DarkNet-53"], "same network")
    check_architectures(
        tiny_recipe({"model.architectures": ["frozen:resnet18", "finetune:resnet18", "joint:resnet18"]}), "hub"
    )
    check_architectures(tiny_recipe({"model.architectures": ["RandomForest", "RandomForest+shape"]}), "none")


def test_a_shared_run_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, network in (("a+b", "resnet18"), ("a/b", "resnet34")):
        monkeypatch.setitem(networks._BY_NAME, name, Entry(name, network, "a paper"))
    refused(["a+b", "a/b"], "share a run folder")


@pytest.mark.parametrize("names", [["frozen:test_resnet"], ["DeepFusion:test_resnet"], ["LeNet", "frozen:test_resnet"]])
def test_frozen_features_need_weights(names: list[str]) -> None:
    refused(names, "learns nothing", weights="none")


def test_never_pretrained_networks_cannot_be_frozen() -> None:
    refused(["LeNet"], "has no pre-trained weights", backbone="frozen")
    refused(["DeepFusion:LeNet"], "has no pre-trained weights")
    check_architectures(tiny_recipe({"model.architectures": ["finetune:LeNet"]}), "none")
