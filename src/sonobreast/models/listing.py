"""What each network is and can do: size, arithmetic, paper, licence, weights at hand, tasks.

Networks are built on PyTorch's meta device, which knows shapes and no values: all of the table takes seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sonobreast.errors import SonobreastError
from sonobreast.models.networks import FUSION, NETWORKS, Architecture, Entry, architecture
from sonobreast.models.own_networks import NEVER_PRETRAINED, WEIGHTS_OF
from sonobreast.models.zoo import forbids_commercial_use, why_no_decoder
from sonobreast.records import SCHEMA_VERSION

USUAL_SIZE = 224
AtHand = Literal[
    "in the folder",
    "not in the folder",
    "in the cache",
    "to be downloaded",
    "none exist",
    "not needed",
    "not asked for",
]


@dataclass(frozen=True)
class Task:
    """Whether a network can do something here, and if not, why."""

    possible: bool
    why_not: str = ""


@dataclass(frozen=True)
class Listed:
    """One line of the list.

    Attributes
    ----------
    name : str
    kind : {"network", "joint", "classical"}
        See `sonobreast.models.networks.Architecture`.
    timm_name : str or None
    gates : bool
    parameters : int or None
        Of the backbone without a classifier (and without a decoder); None where there is none.
    features : int or None
        Length of its pooled vector.
    macs : int or None
        Multiplications with addition for one image of ``size_px``: convolutions and matrix products.
    size_px : int or None
        224, or the network's own size where it takes no other.
    only_size : bool
        It takes no other size.
    paper, remark : str
    licence : str
        Of the weights, as their source states it.
    non_commercial : bool
        It forbids commercial use, as far as its name tells.
    weights : str
        Whether they are at hand: ``in the folder``, ``not in the folder``, ``in the cache``, ``to be downloaded``,
        ``none exist``, ``not needed``, ``not asked for``.
    origin : str
        Where they come from.
    classify, segment : Task
    export : Task
        As ONNX, into a bundle.
    """

    name: str
    kind: str
    timm_name: str | None
    gates: bool
    parameters: int | None
    features: int | None
    macs: int | None
    size_px: int | None
    only_size: bool
    paper: str
    remark: str
    licence: str
    non_commercial: bool
    weights: AtHand
    origin: str
    classify: Task
    segment: Task
    export: Task


def list_models(
    names: Sequence[str] = (), weights: str = "hub", progress: Callable[[str, int, int], None] | None = None
) -> list[Listed]:
    """Describe networks.

    Parameters
    ----------
    names : sequence of str
        See `sonobreast.models.networks.architecture`; none: the whole table.
    weights : str
        Where weights are looked for: ``hub`` (its cache on this machine; nothing is fetched), a folder, or ``none``.
    progress : callable or None
        Told the stage, what is done, and of how many.

    Raises
    ------
    SonobreastError
        Unknown names; a folder of weights that is none.
    """
    if weights not in ("hub", "none") and not Path(weights).is_dir():
        raise SonobreastError(
            "there is no such folder of weights", file=weights, remedy="give --weights hub, none, or a folder"
        )
    chosen = [architecture(n) for n in (names or [e.name for e in NETWORKS])]
    measured: dict[str, _Measured] = {}
    found = []
    for done, one in enumerate(chosen, start=1):
        if one.timm_name is not None and one.timm_name not in measured:
            measured[one.timm_name] = _measure(one.timm_name)
        found.append(_listed(one, None if one.timm_name is None else measured[one.timm_name], weights))
        if progress is not None:
            progress("building networks", done, len(chosen))
    return found


def as_json(listed: Sequence[Listed]) -> str:
    """The list as JSON text with ``schema_version`` and ``models``."""
    return json.dumps({"schema_version": SCHEMA_VERSION, "models": [asdict(one) for one in listed]}, indent=1)


@dataclass(frozen=True)
class _Measured:
    parameters: int
    features: int | None
    macs: int | None
    size_px: int
    only_size: bool
    card: dict[str, Any]
    segment: Task
    why_not: str = ""


def _measure(timm_name: str) -> _Measured:
    with torch.device("meta"):
        network: nn.Module = timm.create_model(timm_name, num_classes=0).eval()
    card: Any = network.pretrained_cfg
    own = int(card["input_size"][-1])
    only = bool(card.get("fixed_input_size"))
    parameters = sum(p.numel() for p in network.parameters())
    for size in dict.fromkeys((own,) if only else (USUAL_SIZE, own)):
        try:
            features, macs = _forward(network, size)
        except (AssertionError, RuntimeError, ValueError):
            only = True  # not 224, so at most its own
            continue
        return _Measured(parameters, features, macs, size, only, dict(card), _segments(network, size))
    why = "it cannot be tried without its weights"
    return _Measured(parameters, None, None, own, only, dict(card), Task(False, why), why)


def _forward(network: nn.Module, size: int) -> tuple[int, int]:
    """Length of the features, and multiplications with addition, for one image."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = network(torch.zeros(1, 3, size, size, device="meta"))
    return int(features.shape[1]), counter.get_total_flops() // 2


def _segments(network: nn.Module, size: int) -> Task:
    """Whether a decoder finds the maps that it needs."""
    if why := why_no_decoder(network):
        return Task(False, why)
    try:
        with torch.no_grad():
            network.forward_intermediates(torch.zeros(1, 3, size, size, device="meta"))  # type: ignore[operator]
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return Task(False, "it gives no feature maps")
    return Task(True)


def _listed(one: Architecture, measured: _Measured | None, weights: str) -> Listed:
    entry = _entry(one)
    plain = Listed(
        name=one.name,
        kind=one.kind,
        timm_name=one.timm_name,
        gates=one.gates,
        parameters=None,
        features=None,
        macs=None,
        size_px=None,
        only_size=False,
        paper=entry.paper if entry else "",
        remark=entry.remark if entry else "",
        licence="none needed",
        non_commercial=False,
        weights="not needed",
        origin="",
        classify=Task(True),
        segment=_no_map(one),
        export=_exports(one),
    )
    if measured is None or one.timm_name is None:
        return plain
    licence, origin = _origin(one.timm_name, measured.card, weights)
    return replace(
        plain,
        parameters=measured.parameters,
        features=measured.features,
        macs=measured.macs,
        size_px=measured.size_px,
        only_size=measured.only_size,
        licence=licence,
        non_commercial=forbids_commercial_use(licence),
        weights=_at_hand(one.timm_name, measured.card, weights),
        origin=origin,
        classify=Task(not measured.why_not, measured.why_not),
        segment=_no_map(one) if one.kind == "classical" else measured.segment,
    )


def _entry(one: Architecture) -> Entry | None:
    """Its line in the table; for a name of timm, that of the same network."""
    if one.entry is not None:
        return one.entry
    if one.kind == "classical":  # the features of another network
        return architecture(FUSION).entry
    same = (e for e in NETWORKS if e.timm_name == one.timm_name and architecture(e.name).kind == "network")
    return next(same, None)


def _exports(one: Architecture) -> Task:
    """A linear probe ends as a linear layer, whatever fitted it."""
    if one.kind == "classical" and not one.probe:
        return Task(False, "scikit-learn fits it, and it has no graph")
    return Task(True)


def _no_map(one: Architecture) -> Task:
    what = "handcrafted features" if one.timm_name is None else "pooled features"
    return Task(False, f"it is fitted on {what}, which know no place")


def _origin(timm_name: str, card: dict[str, Any], weights: str) -> tuple[str, str]:
    """Licence and origin of the weights: of the folder's card where there is one, else as timm states them."""
    if weights not in ("hub", "none"):
        with suppress(OSError, ValueError, TypeError, AttributeError):
            file = Path(weights) / f"{WEIGHTS_OF.get(timm_name, timm_name)}.json"
            own = json.loads(file.read_text(encoding="utf-8"))
            return str(own.get("licence", "not stated")), str(own.get("origin", "not stated"))
    if timm_name in NEVER_PRETRAINED:
        return "none needed", ""
    return str(card.get("license") or "not stated"), str(card.get("hf_hub_id") or card.get("url") or "")


def _at_hand(timm_name: str, card: dict[str, Any], weights: str) -> AtHand:
    if weights == "none":
        return "not asked for"
    if weights not in ("hub", "none"):
        if (Path(weights) / f"{WEIGHTS_OF.get(timm_name, timm_name)}.safetensors").is_file():
            return "in the folder"
        return "none exist" if timm_name in NEVER_PRETRAINED else "not in the folder"
    hub, url = card.get("hf_hub_id"), card.get("url")
    if not hub and not url:
        return "none exist"
    if hub:
        own = card.get("hf_hub_filename")
        files = [own] if own else ["model.safetensors", "pytorch_model.bin"]
        cached = any(isinstance(try_to_load_from_cache(str(hub), f), str) for f in files)
    else:
        cached = (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(str(url)).path).name).is_file()
    return "in the cache" if cached else "to be downloaded"
