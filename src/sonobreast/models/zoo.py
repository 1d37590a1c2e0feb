"""Networks without their classifier, and where their pre-trained weights come from: hub, folder or none.

Weights that do not arrive are an error. Weights that cover a network only in part are counted, and the covered share
travels with the network to every figure.
"""

from __future__ import annotations

import hashlib
import json
import math
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sonobreast.errors import SonobreastError
from sonobreast.models import networks
from sonobreast.models.own_networks import NEVER_PRETRAINED, WEIGHTS_OF

_RESEARCH_ONLY = frozenset({"apple-amlr", "seer-license"})  # licences in timm whose names do not say it


Decoder = Literal["unet", "attention"]
_SPREAD = 5  # maps of a network whose maps all have one scale
LEAST_SCALES = 3  # of the feature maps that a decoder joins


@dataclass(frozen=True)
class Coverage:
    """How much of the published network carries pre-trained weights.

    Attributes
    ----------
    source : str
        ``hub``, ``folder``, ``none``, or ``features`` where there is no network.
    share : float
        Pre-trained parameters over all parameters of the whole backbone, 0 to 1.
    missing : tuple of str
        Tensors of the whole backbone that no file gave.
    cut_after : str or None
        Last stage that is used, where the network was cut.
    origin, licence : str
        Of the weights, as their source states them.
    """

    source: str
    share: float
    missing: tuple[str, ...]
    cut_after: str | None
    origin: str
    licence: str

    def sentence(self) -> str:
        """What stands beside a figure of this network."""
        if self.source == "none":
            return "no pre-trained weights"
        if self.source == "features":
            return f"no network: {self.origin}"
        text = f"{self.share:.0%} of the backbone's parameters pre-trained"
        text += f"; cut after {self.cut_after}" if self.cut_after else ""
        if forbids_commercial_use(self.licence):
            text += f"; the licence of these weights forbids commercial use ({self.licence})"
        return text


def forbids_commercial_use(licence: str) -> bool:
    """Whether a licence's name says so (``cc-by-nc-4.0``, ``...-noncommercial-...``), or its text, as far as known.

    False is no promise: other licences have terms of their own, and whoever ships a model reads them.
    """
    words = "".join(c if c.isalnum() else " " for c in licence.lower()).split()
    return "nc" in words or "noncommercial" in "".join(words) or licence.lower() in _RESEARCH_ONLY


class Backbone(nn.Module):
    """A timm network without its classifier, ending in one vector for each image.

    Attributes
    ----------
    features : int
        Length of that vector.
    mean, std : tuple of 3 floats
        Input normalisation of the pre-trained weights, for pixel values in [0, 1].
    coverage : Coverage
    decoder : str or None
        Of a network that also segments (`sonobreast.models.joint.JointHead`).
    stages : tuple of int
        Channels of the feature maps that such a network's head takes, from fine to coarse (`maps`).
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        timm_name: str,
        cut: int | None,
        features: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        coverage: Coverage,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.decoder = decoder
        self._levels = [] if decoder is None else stage_levels(network, timm_name)
        self.stages = tuple(channels for _, channels in self._levels)
        self.timm_name = timm_name
        self.cut = cut
        self.features = features
        self.mean = mean
        self.std = std
        self.coverage = coverage

    def forward(self, images: Tensor) -> Tensor:
        """Pooled features: (B, 3, H, W) to (B, features)."""
        if self.cut is not None:
            return self.seen(images)[0]
        out: Tensor = self.network(images)
        return out

    def maps(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Pooled features (B, features), and the maps of the stages from fine to coarse, each (B, C_i, H_i, W_i)."""
        return self.seen(images)[:2]

    def seen(self, images: Tensor, levels: Sequence[int] = ()) -> tuple[Tensor, list[Tensor], Tensor]:
        """As `maps`, and what the pooled features are made of: the last map (B, C, h, w), or tokens, or a list of maps.

        The maps are those of the stages for a network that segments, and for others those of the ``levels``, indices of
        timm's feature maps in ascending order, not behind a cut.
        """
        if self.cut is not None:
            found = self.network.forward_intermediates(  # type: ignore[operator]
                images, indices=sorted({*levels, self.cut}), intermediates_only=True, stop_early=True, norm=False
            )
            # In float32 also where the network runs in bfloat16: images differ little in these features.
            pooled: Tensor = found[-1].float().mean((2, 3))  # (B, C, h, w) -> (B, C)
            return pooled, found if self.cut in levels else found[:-1], found[-1]
        taken = [level for level, _ in self._levels] if self.decoder is not None else list(levels)
        if taken:
            last, maps = self.network.forward_intermediates(  # type: ignore[operator]
                images, indices=taken, norm=False, output_fmt="NCHW"
            )
        else:
            last, maps = self.network.forward_features(images), []  # type: ignore[operator]
        return self.network.forward_head(last), maps, last  # type: ignore[operator]

    def used_tensors(self) -> dict[str, Tensor]:
        """Tensors up to the cut, named as timm names them."""
        state: dict[str, Tensor] = self.network.state_dict()
        if self.cut is None:
            return state
        return {k: state[k] for k in _tensors_through(self.network, self.cut)}

    def sha256(self) -> str:
        """Digest of the used tensors, names included."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.used_tensors().items()):
            digest.update(name.encode())
            digest.update(str(tensor.dtype).encode())
            digest.update(tensor.detach().contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()


def timm_name(architecture: str) -> str:
    """The timm name of an architecture's network; `sonobreast.models.networks.architecture` says names and errors."""
    found = networks.architecture(architecture)
    if found.timm_name is None:
        raise SonobreastError(
            f"{found.name} is no network: it is fitted on features of the images",
            remedy="give the name of a network; `sonobreast models` lists them",
        )
    return found.timm_name


def decoder_of(architecture: str) -> Decoder | None:
    """The decoder of an architecture that also segments."""
    found = networks.architecture(architecture)
    return None if found.kind != "joint" else "attention" if found.gates else "unet"


def load_backbone(
    architecture: str, weights: str = "hub", *, cut_uncovered: bool = True, image_size: int = 224
) -> Backbone:
    """Build a backbone and bring its pre-trained weights.

    Parameters
    ----------
    architecture : str
        See `sonobreast.models.networks.architecture`; prefixes change nothing here.
    weights : str
        ``hub``, ``none``, or a folder with ``NAME.safetensors`` and ``NAME.json`` (keys ``model``, ``mean``, ``std``,
        ``licence``, ``origin``), named after the timm model. A network that is never pre-trained
        (`sonobreast.models.own_networks.NEVER_PRETRAINED`) begins without, unless the folder has a file for it.
    cut_uncovered : bool
        End the network after its last stage that is covered completely.
    image_size : int
        Side of the input in pixels; it is tried once.

    Raises
    ------
    SonobreastError
        Unknown network; weights that are missing, damaged or of another network; a tensor of the file that the
        network does not use; an image size the network cannot take.
    """
    name, decoder = timm_name(architecture), decoder_of(architecture)
    if name in NEVER_PRETRAINED and not (Path(weights) / f"{name}.safetensors").is_file():
        weights = "none"
    if weights == "hub":
        network, state, card = _from_hub(name)
    else:
        network = fresh_network(name, seed=0)
        known_as = WEIGHTS_OF.get(name, name)
        state, card = (
            ({}, _plain_card(network)) if weights == "none" else _from_folder(known_as, network, Path(weights))
        )
    network.eval()
    missing = _load(network, state, name, card["file"])
    parameters = {k: p.numel() for k, p in network.named_parameters()}
    absent = sum(n for k, n in parameters.items() if k in missing)
    share = 1.0 - absent / sum(parameters.values()) if state else 0.0
    # A decoder needs all stages: those without weights are trained.
    cut = _last_covered(network, missing, name) if missing and state and cut_uncovered and not decoder else None
    info = _stages(network)
    backbone = Backbone(
        network,
        timm_name=name,
        cut=cut,
        features=0,  # measured below
        mean=card["mean"],
        std=card["std"],
        coverage=Coverage(
            source=card["source"],
            share=share,
            missing=tuple(missing),
            cut_after=None if cut is None else info[cut],
            origin=card["origin"],
            licence=card["licence"],
        ),
        decoder=decoder,
    ).eval()
    with torch.inference_mode():
        try:
            blank = torch.zeros(1, 3, image_size, image_size)
            backbone.features = int(backbone(blank).shape[1])
            if decoder is not None:
                backbone.maps(blank)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise SonobreastError(
                f"{architecture} cannot take images of {image_size} px ({str(error).splitlines()[0][:120]})",
                remedy=f"use its own size with --set preprocess.size={card['size']}",
            ) from error
    return backbone


def fresh_network(timm_name: str, seed: int) -> nn.Module:
    """A timm network without classifier, its weights drawn from a seed; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: nn.Module = timm.create_model(timm_name, num_classes=0)
    return network


def restore_backbone(backbone: Backbone, state: Mapping[str, Tensor], file: Path) -> None:
    """Put saved tensors back into a backbone of the same kind, all of them and no others."""
    expected = set(backbone.used_tensors())
    if set(state) != expected:
        raise SonobreastError(
            f"the file holds {len(set(state) - expected)} tensors too many and {len(expected - set(state))} too few",
            file=file,
            remedy="the file belongs to another network; train the run anew",
        )
    backbone.network.load_state_dict(dict(state), strict=False)


def _stages(network: nn.Module) -> list[str]:
    """Module names at whose end timm offers feature maps, from the input to the output."""
    info: Any = getattr(network, "feature_info", None)
    if info is None:
        return []
    return [str(f["module"]) for f in (info if isinstance(info, list) else info.info)]


def stage_levels(network: nn.Module, name: str) -> list[tuple[int, int]]:
    """Index and channels of the last feature map at each scale, from half the image's size on: what a decoder needs.

    Raises
    ------
    SonobreastError
        If there are fewer than three scales, or timm gives no feature maps of this network.
    """
    if why := why_no_decoder(network):
        raise SonobreastError(
            f"{name} cannot segment: {why}", remedy=f"use it without a decoder ({name}), or another encoder"
        )
    return _levels(network)


def spread_levels(backbone: Backbone) -> list[int]:
    """Indices of feature maps all over a network: the last of each scale, or some where all have one scale.

    None lies behind a cut; a network without maps has none.
    """
    network = backbone.network
    info: Any = getattr(network, "feature_info", None) or []
    n = len(info if isinstance(info, list) else info.info)
    if not n or not hasattr(network, "forward_intermediates"):
        return []
    last = n - 1 if backbone.cut is None else backbone.cut
    if not why_no_decoder(network):
        return [i for i, _ in _levels(network) if i <= last]
    return sorted({round(k * last / (_SPREAD - 1)) for k in range(_SPREAD)})


def why_no_decoder(network: nn.Module) -> str:
    """Why a network cannot be the encoder of one that segments; empty where it can."""
    levels = _levels(network)
    if not hasattr(network, "forward_intermediates") or not levels:
        return "timm gives no feature maps of it"
    if len(levels) < LEAST_SCALES:
        return f"a decoder needs feature maps of {LEAST_SCALES} scales, and it has {len(levels)}"
    if [i for i, _ in levels] != sorted(i for i, _ in levels):
        return "its feature maps do not become coarser from stage to stage"
    return ""


def _levels(network: nn.Module) -> list[tuple[int, int]]:
    info: Any = getattr(network, "feature_info", None) or []
    rows = list(info if isinstance(info, list) else info.info)
    last = {int(row["reduction"]): (i, int(row["num_chs"])) for i, row in enumerate(rows)}
    return [last[r] for r in sorted(last) if r >= 2]


def _tensors_through(network: nn.Module, stage: int) -> list[str]:
    """Tensors from the input to the end of a stage; timm defines modules in the order in which they are used."""
    module = _stages(network)[stage]
    names = list(network.state_dict())
    last = [i for i, k in enumerate(names) if k.startswith(module + ".")]
    if last:
        return names[: last[-1] + 1]
    following = [i for i, k in enumerate(names) if k.startswith(_stages(network)[stage + 1] + ".")]
    return names[: following[0]]  # a stage that ends in an activation has no tensors of its own


def tensors_of_last_stages(network: nn.Module, n: int) -> list[str]:
    """Tensors behind the last stage that stays frozen, for fine-tuning of the last ``n`` stages."""
    stages = _stages(network)
    if not 1 <= n <= len(stages):
        raise SonobreastError(
            f"model.trainable is {n}; this network has {len(stages)} stages", remedy="give 1 to that number, or all"
        )
    if n == len(stages):
        return list(network.state_dict())
    frozen = set(_tensors_through(network, len(stages) - n - 1))
    return [k for k in network.state_dict() if k not in frozen]


def _last_covered(network: nn.Module, missing: list[str], name: str) -> int:
    lost = set(missing)
    covered = [i for i in range(len(_stages(network))) if not lost & set(_tensors_through(network, i))]
    if not covered or not hasattr(network, "forward_intermediates"):
        raise SonobreastError(
            f"the weights leave {len(missing)} tensors of {name} without values, and there is no stage to cut after",
            remedy="use other weights, or train the rest with --set model.uncovered=train",
        )
    return covered[-1]


def _load(network: nn.Module, state: Mapping[str, Tensor], name: str, file: str | None) -> list[str]:
    """Load what the file gives; return the names of what it does not."""
    if not state:
        return list(network.state_dict())
    own = network.state_dict()
    unused = sorted(set(state) - set(own))
    if unused:
        raise SonobreastError(
            f"{len(unused)} tensors of the weights have no place in {name}: {', '.join(unused[:4])}"
            + (", ..." if len(unused) > 4 else ""),
            file=file,
            remedy="the file belongs to another network, or to another version of timm",
        )
    shapes = {k: (tuple(v.shape), tuple(own[k].shape)) for k, v in state.items()}
    misfits = [f"{k} {given} for {wanted}" for k, (given, wanted) in shapes.items() if given != wanted]
    if misfits:
        raise SonobreastError(
            f"the weights do not fit {name}: {len(misfits)} tensors have another shape, first {misfits[0]}",
            file=file,
            remedy="use the weights of this very network",
        )
    broken = [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]
    if broken:
        raise SonobreastError(
            f"{len(broken)} tensors of the weights hold values that are no numbers, first {broken[0]}",
            file=file,
            remedy="copy or download the file again",
        )
    network.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()}, strict=False)
    counters = ("num_batches_tracked",)  # of no use in inference; many exporters leave them out
    return [k for k in own if k not in state and not k.endswith(counters)]


def _from_folder(name: str, network: nn.Module, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    if not folder.is_dir():
        raise SonobreastError(
            "there is no such folder of weights", file=folder, remedy="give --weights hub, none, or a folder"
        )
    file, card_file = folder / f"{name}.safetensors", folder / f"{name}.json"
    if not file.is_file():
        at_hand = sorted(f.stem for f in folder.glob("*.safetensors"))
        raise SonobreastError(
            f"the folder has no weights for {name}; it has {', '.join(at_hand) or 'none'}",
            file=file,
            remedy=f"put {name}.safetensors and {name}.json there, or choose another network or --weights hub",
        )
    try:
        card = json.loads(card_file.read_text(encoding="utf-8"))
        mean, std = _three(card["mean"]), _three(card["std"])
        if not all(map(math.isfinite, (*mean, *std))) or min(std) <= 0:
            raise ValueError(f"mean {mean}, std {std}")
        if card["model"] != name:
            raise SonobreastError(
                f"the card is of {card['model']!r}, the weights' name is {name!r}",
                file=card_file,
                remedy="put the right card beside the weights",
            )
    except FileNotFoundError as error:
        raise SonobreastError(
            "the weights have no card",
            file=card_file,
            remedy='write one: {"model": NAME, "mean": [..], "std": [..], "licence": .., "origin": ..}',
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise SonobreastError(
            f"the card of the weights is not valid ({type(error).__name__}: {error})",
            file=card_file,
            remedy="it needs model, mean (3 numbers) and std (3 numbers above 0)",
        ) from error
    try:
        state = load_file(file)
    except (SafetensorError, OSError) as error:
        raise SonobreastError(
            f"the weights cannot be read ({error})", file=file, remedy="copy or download the file again"
        ) from error
    if not state:
        raise SonobreastError("the file of weights is empty", file=file, remedy="copy or download the file again")
    return state, {
        **_plain_card(network),
        "file": str(file),
        "source": "folder",
        "mean": mean,
        "std": std,
        "origin": str(card.get("origin", "not stated")),
        "licence": str(card.get("licence", "not stated")),
    }


def _three(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def _from_hub(name: str) -> tuple[nn.Module, dict[str, Tensor], dict[str, Any]]:
    constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE or _name_service_is_away()
    known_as = WEIGHTS_OF.get(name, name)
    try:
        network = timm.create_model(known_as, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises its own, httpx', and the operating system's errors
        reason = str(error).strip().splitlines()
        raise SonobreastError(
            f"the weights of {name} did not arrive from the model hub: {reason[0][:200] if reason else error}",
            remedy="check the connection; off-line, give a folder of weights with --weights DIR, or train from scratch "
            "with --weights none --set model.backbone=finetune",
        ) from error
    card = {**_plain_card(network), "source": "hub"}
    return network if known_as == name else fresh_network(name, seed=0), network.state_dict(), card


def _name_service_is_away() -> bool:
    """Whether the hub's name cannot be resolved: the client would retry for a minute, and the cache needs no hub."""
    if getproxies():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except socket.gaierror:
        return True
    return False


def _plain_card(network: nn.Module) -> dict[str, Any]:
    config: Any = network.pretrained_cfg
    return {
        "file": None,
        "source": "none",
        "mean": _three(config["mean"]),
        "std": _three(config["std"]),
        "size": int(config["input_size"][-1]),
        "origin": str(config.get("hf_hub_id") or config.get("url") or "not stated"),
        "licence": str(config.get("license") or "not stated"),
    }
