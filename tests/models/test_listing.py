"""The list of networks says what is so: figures by hand, licences, weights at hand, tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tests.fake import write_weights

from sonobreast.errors import SonobreastError
from sonobreast.models import listing
from sonobreast.models.listing import as_json, list_models
from sonobreast.models.networks import NETWORKS
from sonobreast.models.zoo import forbids_commercial_use


def one(name: str, weights: str = "none") -> listing.Listed:
    [found] = list_models([name], weights)
    return found


def test_lenet_by_hand() -> None:
    """Each convolution: map x kernel x channels in x channels out; the dense layer: in x out."""
    c1, c3, c5 = 220**2 * 25 * 3 * 6, 106**2 * 25 * 6 * 16, 49**2 * 25 * 16 * 120
    found = one("LeNet")
    assert found.macs == c1 + c3 + c5 + 120 * 84
    assert found.parameters == 450 + 2400 + 48000 + 2 * (6 + 16 + 120) + 121 * 84
    assert (found.features, found.size_px, found.only_size) == (84, 224, False)


def test_published_figures() -> None:
    """MACs as the papers print them (He 2015, Table 1: 1.8 and 3.8 billion; timm counts the stride of v1.5), to 2 %."""
    for name, billions in (("ResNet-18", 1.81), ("MobileNetV2", 0.300), ("ViT-S/16", 4.6)):
        assert one(name).macs == pytest.approx(1e9 * billions, rel=0.02), name


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_parameters_are_those_of_the_real_network(name: str) -> None:
    network: Any = timm.create_model(name, num_classes=0)
    found = one(name)
    assert found.parameters == sum(p.numel() for p in network.parameters())
    with torch.inference_mode():
        assert found.features == network.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    assert found.segment.possible
    assert found.classify.possible


def test_what_scikit_learn_fits_has_no_graph_but_a_linear_layer_has() -> None:
    for name, possible in (("LinearProbe:test_resnet", True), ("DeepFusion:test_resnet", False), ("test_vit", True)):
        assert one(name).export.possible == possible, name
    assert "scikit-learn" in one("RandomForest").export.why_not


def test_a_transformer_has_no_maps_for_a_decoder() -> None:
    found = one("test_vit")
    assert not found.segment.possible
    assert "3 scales, and it has 1" in found.segment.why_not
    assert (found.size_px, found.only_size) == (160, True)


def test_what_is_no_network() -> None:
    found = one("RandomForest+shape", "hub")
    assert (found.parameters, found.macs, found.timm_name, found.weights) == (None, None, None, "not needed")
    assert "know no place" in found.segment.why_not
    fusion = one("DeepFusion:test_resnet")
    assert fusion.parameters == one("test_resnet").parameters
    assert not fusion.segment.possible
    assert "Jabeen" in fusion.paper


def test_names_of_timm_get_the_paper_of_their_network() -> None:
    assert one("test_resnet").paper == "timm"
    assert one("joint:test_resnet").kind == "joint"
    assert one("test_convnext").paper == ""


# Licences


@pytest.mark.parametrize(
    ("licence", "forbidden"),
    [
        ("cc-by-nc-4.0", True),
        ("CC BY-NC-SA 4.0", True),
        ("fair-noncommercial-research-license", True),
        ("Non-Commercial use only", True),
        ("apple-amlr", True),
        ("seer-license", True),
        ("apache-2.0", False),
        ("mit", False),
        ("bsd-3-clause", False),
        ("not stated", False),
        ("made in France, once", False),
    ],
)
def test_licences_that_forbid_commercial_use(licence: str, forbidden: bool) -> None:
    assert forbids_commercial_use(licence) is forbidden


def test_every_such_licence_of_timm_is_seen() -> None:
    known = {timm.models.get_pretrained_cfg(n).license for n in timm.list_pretrained()} - {None}
    marked = {name for name in known if forbids_commercial_use(name)}
    assert {"cc-by-nc-4.0", "fair-noncommercial-research-license"} <= marked
    assert not {n for n in known if "nc" in n.split("-") or "noncommercial" in n} - marked


def test_a_folder_states_its_own_licence(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_resnet", licence="cc-by-nc-4.0", origin="a colleague")
    found = one("test_resnet", str(tmp_path))
    assert (found.licence, found.origin, found.non_commercial) == ("cc-by-nc-4.0", "a colleague", True)
    assert one("test_resnet").licence == "apache-2.0"


# Weights


def test_weights_in_a_folder(tmp_path: Path) -> None:
    write_weights(tmp_path, "test_resnet")
    (tmp_path / "efficientnet_b0.safetensors").touch()
    found = {m.name: m.weights for m in list_models(["test_resnet", "test_vit", "LeNet", "CSA-Net"], str(tmp_path))}
    assert found == {
        "test_resnet": "in the folder",
        "test_vit": "not in the folder",
        "LeNet": "none exist",
        "CSA-Net": "in the folder",
    }
    with pytest.raises(SonobreastError, match="no such folder"):
        list_models(["LeNet"], str(tmp_path / "nowhere"))


def test_weights_in_the_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    def cached(repository: str, file: str) -> str | None:
        asked.append((repository, file))
        return "somewhere" if "test_resnet" in repository else None

    monkeypatch.setattr(listing, "try_to_load_from_cache", cached)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    assert one("test_resnet", "hub").weights == "in the cache"
    assert one("test_vit", "hub").weights == "to be downloaded"
    assert one("GoogLeNet", "hub").weights == "to be downloaded"
    (tmp_path / "checkpoints" / "googlenet-1378be20.pth").touch()
    assert one("GoogLeNet", "hub").weights == "in the cache"
    assert one("LeNet", "hub").weights == "none exist"
    assert one("LeNet", "none").weights == "not asked for"
    assert asked[0][0].startswith("timm/test_resnet")


def test_json_holds_everything() -> None:
    found = list_models(["LeNet", "RandomForest"], "none")
    content = json.loads(as_json(found))
    assert content["schema_version"] == 1
    assert [m["name"] for m in content["models"]] == ["LeNet", "RandomForest"]
    assert set(content["models"][0]) == set(listing.Listed.__dataclass_fields__)
    assert content["models"][0]["classify"] == {"possible": True, "why_not": ""}
    assert content["models"][0]["segment"]["possible"] is False


def test_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[tuple[str, int, int]] = []
    list_models(["LeNet", "RandomForest"], "none", lambda *step: steps.append(step))
    assert [s[1:] for s in steps] == [(1, 2), (2, 2)]


@pytest.mark.slow
def test_every_network_of_the_table_can_be_measured() -> None:
    found = list_models((), "none")
    assert [m.name for m in found] == [e.name for e in NETWORKS]
    for m in found:
        assert m.classify.possible, m
        if m.kind == "joint":
            assert m.segment.possible, m
        if m.timm_name is not None:
            assert m.macs > 0, m
            assert m.licence
