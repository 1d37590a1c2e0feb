"""Every network by its name: one table, and what a name with its prefixes means.

A recipe names an architecture as ``[frozen:|finetune:][joint:]NAME``, where NAME is in `NETWORKS` (upper and lower case
are the same) or any name of timm, with a tag or without. ``DeepFusion:NAME`` takes its features from another network,
and ``LinearProbe:NAME`` is a logistic regression on them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import timm

from sonobreast.config import Recipe
from sonobreast.errors import SonobreastError, nearest
from sonobreast.models import own_networks
from sonobreast.records import Run

Kind = Literal["network", "joint", "classical"]
Mode = Literal["frozen", "finetune"]

FUSION = "DeepFusion"
PROBE = "LinearProbe"
_REMEDY = "give a name that `sonobreast models` lists, or a name of timm, with --set model.architectures=[...]"


@dataclass(frozen=True)
class Entry:
    """A line of the table.

    Attributes
    ----------
    name : str
        As papers say it.
    timm_name : str or None
        None: no network takes part.
    paper : str
        Where the network, or this use of it, is described.
    remark : str
        What differs from the paper, or what to know before it is chosen.
    joint : bool
        It classifies and segments.
    gates : bool
        Attention gates in its decoder.
    classical : bool
        It is fitted by scikit-learn, on features.
    shape : bool
        Its features describe the lesion's mask, too.
    """

    name: str
    timm_name: str | None
    paper: str
    remark: str = ""
    joint: bool = False
    gates: bool = False
    classical: bool = False
    shape: bool = False


_RESNET = "He 2015, arXiv:1512.03385"
_DENSENET = "Huang 2016, arXiv:1608.06993"
_EFFICIENTNET = "Tan and Le 2019, arXiv:1905.11946"
_FOREST = "Breiman 2001, doi:10.1023/A:1010933404324"

NETWORKS: tuple[Entry, ...] = (
    Entry("ResNet-18", "resnet18", _RESNET),
    Entry("ResNet-34", "resnet34", _RESNET),
    Entry("ResNet-50", "resnet50", _RESNET),
    Entry("ResNet-101", "resnet101", _RESNET),
    Entry("ResNet-152", "resnet152", _RESNET),
    Entry("ResNet50V2", "resnetv2_50", "He 2016, arXiv:1603.05027"),
    Entry("MobileNetV2", "mobilenetv2_100", "Sandler 2018, arXiv:1801.04381"),
    Entry("DenseNet121", "densenet121", _DENSENET),
    Entry("DenseNet169", "densenet169", _DENSENET),
    Entry("DenseNet201", "densenet201", _DENSENET),
    Entry("VGG16", "vgg16", "Simonyan and Zisserman 2014, arXiv:1409.1556", "with its two dense layers of 4,096"),
    Entry(
        "InceptionV3", "inception_v3", "Szegedy 2015, arXiv:1512.00567", "made for 299 px; takes any size from 75 px"
    ),
    Entry("GoogLeNet", "googlenet_tv", "Szegedy 2014, arXiv:1409.4842", "torchvision's, without auxiliary heads"),
    Entry("ResNeXt50", "resnext50_32x4d", "Xie 2016, arXiv:1611.05431"),
    Entry("DarkNet-53", "darknet53", "Redmon and Farhadi 2018, arXiv:1804.02767"),
    Entry("Xception", "legacy_xception", "Chollet 2016, arXiv:1610.02357", "made for 299 px; takes any"),
    Entry("EfficientNet-B0", "efficientnet_b0", _EFFICIENTNET),
    Entry("EfficientNet-B7", "tf_efficientnet_b7", _EFFICIENTNET, "made for 600 px; takes any"),
    Entry(
        "CSA-Net",
        "efficientnet_b0_csa",
        "Naeem and Saleem 2024, doi:10.3390/jimaging10100256",
        "EfficientNet-B0 with channel and spatial attention (CBAM) before pooling; the attention's place is ours",
    ),
    Entry(
        "LeNet",
        "lenet_modified",
        "Balasubramaniam 2023, doi:10.3390/diagnostics13172746",
        "batch norm and leaky ReLU; the last convolution is pooled, so that any size fits (ours); never pre-trained",
    ),
    Entry(
        "DSC-Net",
        "dscnet_fc",
        "blocks: Howard 2017, arXiv:1704.04861",
        "fully connected depth-wise separable CNN; depths and widths are ours; never pre-trained",
    ),
    Entry("ViT-S/16", "vit_small_patch16_224", "Dosovitskiy 2020, arXiv:2010.11929"),
    Entry("DeiT-Ti", "deit_tiny_patch16_224", "Touvron 2020, arXiv:2012.12877"),
    Entry("EfficientViM-M1", "efficientvim_m1", "Lee 2024, arXiv:2411.15241", "state-space network"),
    Entry(
        "modresnet101",
        "resnet101",
        "Yadav 2024",
        "ResNet-101 with shortcuts from every stage to the classifier, and a decoder",
        joint=True,
    ),
    Entry(
        "AttentionUNet",
        "resnet34",
        "Oktay 2018, arXiv:1804.03999",
        "attention gates in the decoder; the ResNet-34 encoder is ours",
        joint=True,
        gates=True,
    ),
    Entry(
        "HybridJoint",
        "coatnet_0_rw_224",
        "after Shareef 2023, arXiv:2308.02101",
        "hybrid CNN-transformer that classifies and segments, here on CoAtNet (arXiv:2106.04803)",
        joint=True,
    ),
    Entry(
        "RandomForest",
        None,
        _FOREST,
        "on first-order, GLCM, LBP and HOG features of the whole image",
        classical=True,
    ),
    Entry(
        "RandomForest+shape",
        None,
        _FOREST,
        "with shape features of the radiologist's mask, whose emptiness gives normal images away",
        classical=True,
        shape=True,
    ),
    Entry(
        FUSION,
        "darknet53",
        "after Jabeen 2022, doi:10.3390/s22030807",
        "frozen features, selected by ANOVA F, and probabilities of five classifiers fused; selection, frozen backbone "
        "and fusion are ours. DeepFusion:NAME takes the features of another network",
        classical=True,
    ),
    Entry(
        PROBE,
        "densenet169",
        "Alain and Bengio 2016, arXiv:1610.01644",
        "logistic regression on frozen features, its penalty chosen on validation images; the baseline that a trained "
        "network has to beat. LinearProbe:NAME takes the features of another network",
        classical=True,
    ),
    # timm's smallest networks, for demonstrations and tests
    Entry("ResNet-mini", "test_resnet", "timm", "for demonstrations"),
    Entry("EfficientNet-mini", "test_efficientnet", "timm", "for demonstrations"),
)
_BY_NAME = {entry.name.lower(): entry for entry in NETWORKS}


@dataclass(frozen=True)
class Architecture:
    """What an architecture's name in a recipe means.

    Attributes
    ----------
    name : str
        Of the table, or of timm, without prefixes.
    timm_name : str or None
        The network, or the one whose features a classical system takes; None where no network takes part.
    kind : {"network", "joint", "classical"}
        A classifier; one that segments, too; one that scikit-learn fits on features.
    gates : bool
        Attention gates in the decoder of a joint network.
    mode : {"frozen", "finetune"} or None
        In place of the recipe's ``model.backbone``; None: as the recipe says.
    shape : bool
        Shape features of the lesion's mask.
    """

    name: str
    timm_name: str | None
    kind: Kind
    gates: bool = False
    mode: Mode | None = None
    shape: bool = False

    @property
    def probe(self) -> bool:
        """Whether it is a logistic regression on a network's features."""
        return self.name.partition(":")[0] == PROBE

    @property
    def entry(self) -> Entry | None:
        """Its line in the table; None for a name of timm."""
        return _BY_NAME.get((PROBE if self.probe else self.name).lower())


def architecture(name: str) -> Architecture:
    """Read an architecture's name.

    Parameters
    ----------
    name : str
        ``[frozen:|finetune:][joint:]NAME``, ``DeepFusion:NAME`` or ``LinearProbe:NAME``.

    Raises
    ------
    SonobreastError
        A name that neither the table nor timm know (the nearest ones are named), a prefix without a name, a prefix
        that does not fit.
    """
    mode: Mode | None = None
    joint, rest = False, name
    first, colon, behind = rest.partition(":")
    if colon and first.lower() in ("frozen", "finetune"):
        mode, rest = ("frozen" if first.lower() == "frozen" else "finetune"), behind
        first, colon, behind = rest.partition(":")
    if colon and first.lower() == "joint":
        joint, rest = True, behind
        first, colon, behind = rest.partition(":")
    system = next((s for s in (FUSION, PROBE) if colon and first.lower() == s.lower()), None)
    if not rest.strip() or (system is not None and not behind.strip()):
        raise SonobreastError(f"the architecture {name!r} is a prefix without the name of a network", remedy=_REMEDY)
    if system is None:
        found = _look_up(rest, name)
    else:
        network = _network_name(system, behind, name)
        found = replace(_look_up(system, name), timm_name=network, name=f"{system}:{behind}")
    if found.kind == "classical":
        if mode is not None or joint:
            prefix = f"{mode}:" if mode is not None else "joint:"
            why = "has no backbone that could be trained or frozen" if found.timm_name is None else "is always frozen"
            raise SonobreastError(
                f"{prefix} does not fit {found.name}, which " + ("cannot segment" if mode is None else why),
                remedy=f"give {found.name} without a prefix",
            )
        return found
    return replace(found, kind="joint" if joint else found.kind, mode=mode)


def _look_up(rest: str, whole: str) -> Architecture:
    entry = _BY_NAME.get(rest.lower())
    if entry is not None:
        kind: Kind = "classical" if entry.classical else "joint" if entry.joint else "network"
        return Architecture(entry.name, entry.timm_name, kind, entry.gates, shape=entry.shape)
    if timm.is_model(rest) and _tag_is_known(rest):
        return Architecture(rest, rest, "network")
    called = repr(whole) if rest == whole else f"{rest!r} (in {whole!r})"
    names = [entry.name for entry in NETWORKS]
    raise SonobreastError(
        f"no network is called {called}; {nearest(rest, [*names, *timm.list_models()])}", remedy=_REMEDY
    )


def _network_name(system: str, rest: str, whole: str) -> str:
    """The timm name of a plain network, for whoever takes its features."""
    found = _look_up(rest, whole)
    if found.kind != "network" or found.timm_name is None:
        raise SonobreastError(
            f"{system} takes the features of a network, and {found.name} is none",
            remedy=f"give {system}:NAME with the name of a plain network, such as {system}:DenseNet169",
        )
    return found.timm_name


def _tag_is_known(name: str) -> bool:
    tag = name.partition(".")[2]
    return not tag or timm.models.is_model_pretrained(name)


def recipe_for(recipe: Recipe, name: str) -> Recipe:
    """The recipe with the settings of one architecture, and ``model.backbone`` as its prefix wants it."""
    recipe = recipe.of(name)
    if architecture(name).probe:  # one linear layer on the features of each image alone
        head = recipe.head.model_copy(update={"hidden": (), "dropout": 0.0})
        inference = recipe.inference.model_copy(update={"flips": False})
        model = recipe.model.model_copy(update={"backbone": "frozen"})
        recipe = recipe.model_copy(update={"head": head, "inference": inference, "model": model})
    mode = architecture(name).mode
    if mode is None or mode == recipe.model.backbone:
        return recipe
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"backbone": mode})})


def check_architectures(recipe: Recipe, weights: str) -> None:
    """Refuse what cannot be trained, before anything is read.

    Raises
    ------
    SonobreastError
        An unknown name; two names of one study that mean the same or would share a run folder; a frozen backbone
        without pre-trained weights.
    """
    for name in recipe.settings_of:
        architecture(name)  # one that is no part of this study may stand there, but it has to be one
    seen: dict[Any, str] = {}
    for name in recipe.model.architectures:
        chosen = architecture(name)
        mode = recipe_for(recipe, name).model.backbone
        frozen = chosen.timm_name is not None and (chosen.kind == "classical" or mode == "frozen")
        if frozen and weights == "none":
            raise SonobreastError(
                "a frozen backbone without pre-trained weights learns nothing"
                + (f" ({name})" if len(recipe.model.architectures) > 1 else ""),
                remedy="give --weights hub or a folder, or train it with --set model.backbone=finetune",
            )
        if frozen and chosen.timm_name in own_networks.NEVER_PRETRAINED:
            raise SonobreastError(
                f"{chosen.name} has no pre-trained weights, and a frozen backbone without them learns nothing",
                remedy=f"train it: finetune:{chosen.name}",
            )
        meant = replace(chosen, name=PROBE if chosen.probe else "", mode=None if chosen.kind == "classical" else mode)
        folder = Run(architecture=name, optimizer="").id.lower()  # some file systems ignore case
        for key, why in ((meant, "are the same network"), (folder, "would share a run folder")):
            if key in seen:
                raise SonobreastError(
                    f"the architectures {seen[key]} and {name} {why}", remedy="leave one of them out of the study"
                )
            seen[key] = name
