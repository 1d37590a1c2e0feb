"""Recipes: frozen settings read from YAML. An unknown key is an error, with the nearest valid ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, field_validator, model_validator

from sonobreast.errors import SonobreastError, nearest

Fraction = Field(gt=0.0, lt=1.0)
_TABLES = ("data.subsample", "training.learning_rates", "settings_of")  # their keys are the user's, not settings
_OWN = ("augment", "head", "model", "segmentation", "training", "inference")  # of which one architecture may differ
_SHARED = ("model.architectures", "training.optimizers", "training.seeds")
DECAYING = ("adamw", "sgd", "sgdm")  # optimizers that take `Training.weight_decay`


class Settings(BaseModel):
    """A frozen group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Data(Settings):
    """Which images of the data set are used.

    Attributes
    ----------
    classes : tuple of str or None
        Classes in the order of the network's outputs; None takes those of the data set, sorted.
    subsample : dict of int or None
        How many images of each class are drawn; None takes all.
    subsample_seed : int
        Seed of that draw.
    """

    classes: tuple[str, ...] | None = None
    subsample: dict[str, int] | None = None
    subsample_seed: int = Field(0, ge=0)


class Split(Settings):
    """How the images are divided.

    Attributes
    ----------
    kind : {"holdout", "kfold"}
    validation, test : float
        Fractions of the images of each class. With ``kfold`` the test fraction is 1 / folds and ``validation`` is the
        fraction of the remaining images.
    folds, repeats : int
        For ``kfold``: folds, and how often the whole division is drawn anew.
    grouping : {"group", "none"}
        ``group`` keeps the images of one group (patient, or near-duplicates) in one subset. ``none`` divides image by
        image, as most papers do, and is said in red in the report.
    seed : int
    """

    kind: Literal["holdout", "kfold"] = "holdout"
    validation: float = Field(0.15, gt=0.0, lt=1.0)
    test: float = Field(0.15, gt=0.0, lt=1.0)
    folds: int = Field(5, ge=2, le=100)
    repeats: int = Field(1, ge=1, le=1000)
    grouping: Literal["group", "none"] = "group"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _leave_something(self) -> Split:
        if self.kind == "holdout" and self.validation + self.test >= 1.0:
            raise ValueError("validation + test must be less than 1: nothing is left for training")
        return self


class Preprocess(Settings):
    """From a decoded image to the network's input; shared by training and serving.

    Attributes
    ----------
    size : int
        Side of the square input in pixels.
    interpolation : {"nearest", "bilinear", "bicubic", "area"}
    aspect : {"stretch", "pad"}
        ``stretch`` ignores the aspect ratio (as Keras' generators do), ``pad`` keeps it and fills with black.
    scaling : {"unit", "symmetric", "weights"}
        Pixel values in [0, 1], in [-1, 1], or normalised with the mean and spread of the weights' own training.
    inpaint_marks : bool
        Fill burned-in text, calipers and other graphics before resizing (`sonobreast.data.inpaint`), when an image is
        decoded: in training, testing and later use alike. Needs SciPy there too, and some 20 ms an image.
    """

    size: int = Field(224, ge=32, le=2048)
    interpolation: Literal["nearest", "bilinear", "bicubic", "area"] = "bilinear"
    aspect: Literal["stretch", "pad"] = "stretch"
    scaling: Literal["unit", "symmetric", "weights"] = "weights"
    inpaint_marks: bool = False


class Augment(Settings):
    """Random changes of the training images.

    Attributes
    ----------
    rotation : float
        Largest angle, degrees.
    zoom, shift : float
        Largest change of scale, and largest shift as a share of the side; each axis is drawn apart.
    shear : float
        Largest shear angle, degrees.
    horizontal_flip, vertical_flip : bool
        Mirror half of the images.
    brightness : float
        Largest relative change of the grey values.
    aspect : float
        Largest relative change of the ratio of width to height, at the same area: scanners, crops and ``stretch`` to a
        square change it. (``zoom`` draws each axis apart, so it changes scale and ratio together.)
    lesion_zoom : float
        Probability with which a window about the lesion is shown. Scale and probability are the same for images
        without a lesion, whose window lies where another training image's would
        (`sonobreast.training.lesion_window`). Needs masks.
    lesion_window : float
        Smallest side of that window, as a share of the picture's.
    gain : float
        Largest change of the overall gain, decibels of a display of 60 dB (`sonobreast.training.appearance`).
    depth_attenuation : float
        Largest change at any depth of a smooth factor along it, decibels: a time-gain compensation set too high or low.
    contrast : float
        The grey map's exponent is drawn between 1 / (1 + contrast) and 1 + contrast: dynamic range and grey map.
    speckle : float
        Largest standard deviation of multiplicative noise of the echoes, in grains, decibels.
    blur : float
        Largest standard deviation of a Gaussian, as a share of the side: a coarser scanner.
    inpaint_marks : float
        Probability with which burned-in text, calipers and other graphics are filled (`sonobreast.data.inpaint`): the
        network meets each image with and without them. At test time nothing is filled, and nothing has to be found.
    fill : {"nearest", "reflect", "constant"}
        What is shown outside the image: its edge, its mirror image, or black.
    views : int or None
        How many augmented views are made of each training image. Epoch e shows view e mod ``views``; as many views as
        epochs means a fresh view in every epoch. None: a fresh one every epoch.
    """

    rotation: float = Field(0.0, ge=0.0, le=180.0)
    zoom: float = Field(0.0, ge=0.0, lt=1.0)
    shift: float = Field(0.0, ge=0.0, lt=1.0)
    shear: float = Field(0.0, ge=0.0, lt=80.0)
    horizontal_flip: bool = False
    vertical_flip: bool = False
    brightness: float = Field(0.0, ge=0.0, le=1.0)
    aspect: float = Field(0.0, ge=0.0, le=2.0)
    lesion_zoom: float = Field(0.0, ge=0.0, le=1.0)
    lesion_window: float = Field(0.5, ge=0.1, le=1.0)
    gain: float = Field(0.0, ge=0.0, le=30.0)
    depth_attenuation: float = Field(0.0, ge=0.0, le=30.0)
    contrast: float = Field(0.0, ge=0.0, le=2.0)
    speckle: float = Field(0.0, ge=0.0, le=15.0)
    blur: float = Field(0.0, ge=0.0, le=0.05)
    inpaint_marks: float = Field(0.0, ge=0.0, le=1.0)
    fill: Literal["nearest", "reflect", "constant"] = "nearest"
    views: int | None = Field(None, ge=1)

    def geometry(self) -> Augment:
        """The same without changes of the grey values: what happens to a mask."""
        grey = ("brightness", "gain", "depth_attenuation", "contrast", "speckle", "blur")
        return self.model_copy(update=dict.fromkeys(grey, 0.0))


class Head(Settings):
    """The classifier on the pooled features.

    Attributes
    ----------
    hidden : tuple of int
        Widths of dense layers with ReLU before the last one; empty for a linear head.
    dropout : float
        Share of units dropped before the last layer.
    init : {"glorot", "torch"}
        Glorot-uniform weights with zero bias (Keras' default), or PyTorch's own linear initialisation.
    """

    hidden: tuple[int, ...] = (128,)
    dropout: float = Field(0.3, ge=0.0, lt=1.0)
    init: Literal["glorot", "torch"] = "glorot"


class Model(Settings):
    """The networks of the study and what of them is trained.

    Attributes
    ----------
    architectures : tuple of str
        Names that ``sonobreast models`` lists or any timm name, as ``[frozen:|finetune:][joint:]NAME``; ``frozen:`` and
        ``finetune:`` stand in place of ``backbone`` for that one.
    backbone : {"frozen", "finetune"}
        ``frozen`` trains the head alone; ``finetune`` trains what ``trainable`` says.
    trainable : "all" or int
        For ``finetune``: everything, or the last n stages.
    uncovered : {"cut", "train"}
        Where the pre-trained weights cover a frozen backbone only in part: cut after the last covered stage, or keep
        the covered stages frozen and train the others.
    cut_norm : {"standardise", "none"}
        What replaces the final norm of a network that was cut: each pooled feature standardised with the mean and
        spread of the training subset's images, or nothing.
    batch_norm : {"inference", "train"}
        For ``finetune``: whether pre-trained batch norms keep their statistics.
    precision : {"auto", "float32", "bfloat16"}
        Of the arithmetic of training alone: of the augmented views that go through a frozen backbone, and of the
        training steps of one that is fine-tuned (its weights and their updates stay float32). ``auto`` takes bfloat16
        where the processor multiplies it in hardware; for fine-tuning, if a timing of that network on this machine
        says that it is faster. ``float32`` gives the same figures on every machine, up to rounding. Validation and test
        probabilities are always computed in float32.
    """

    architectures: tuple[str, ...] = Field(min_length=1)
    backbone: Literal["frozen", "finetune"] = "frozen"
    trainable: Literal["all"] | PositiveInt = "all"
    uncovered: Literal["cut", "train"] = "cut"
    cut_norm: Literal["standardise", "none"] = "standardise"
    batch_norm: Literal["inference", "train"] = "inference"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    @field_validator("architectures", mode="before")
    @classmethod
    def _prefix_with_a_space(cls, value: Any) -> Any:
        """YAML reads ``frozen: NAME`` and ``frozen:`` as mappings; a prefix is meant."""
        if not isinstance(value, list | tuple):
            return value
        return [
            ":".join(f"{k}:{'' if v is None else v}" for k, v in name.items()) if isinstance(name, dict) else name
            for name in value
        ]


class Segmentation(Settings):
    """The lesion's outline beside the class, for networks that segment (``joint:NAME``); others do not look at it.

    Attributes
    ----------
    classification, dice, cross_entropy : float
        Weights of the three parts of the loss: cross-entropy of the class; 1 - Dice and binary cross-entropy of the
        mask, both over the images of a batch whose mask is known (that of a normal image is empty).
    channels : tuple of int
        Widths of the decoder's blocks, from the coarsest on, each at twice the resolution of the one before. With five
        blocks on an encoder that begins at half the size the mask has the image's resolution; with fewer it is
        enlarged bilinearly.
    shortcuts : int
        Width to which each stage's pooled features are projected before they are added.
    threshold : float
        Probability from which on a pixel counts as lesion.
    """

    classification: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    dice: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    cross_entropy: float = Field(1.0, ge=0.0, allow_inf_nan=False)
    channels: tuple[PositiveInt, ...] = Field((256, 128, 64, 32, 16), min_length=1)
    shortcuts: PositiveInt = 256
    threshold: float = Field(0.5, gt=0.0, lt=1.0)

    @model_validator(mode="after")
    def _learn_something(self) -> Segmentation:
        if self.classification == 0.0:
            raise ValueError("classification must be above 0: every study has classes")
        return self


class EarlyStopping(Settings):
    """When training ends before the last epoch.

    Attributes
    ----------
    monitor : {"validation_loss", "validation_accuracy"}
        Watched for stopping and for the choice of the best epoch.
    patience : int
        Epochs without improvement before training ends.
    min_delta : float
        Smallest change that counts as one.
    """

    monitor: Literal["validation_loss", "validation_accuracy"] = "validation_loss"
    patience: int = Field(10, ge=1)
    min_delta: float = Field(0.0, ge=0.0)


class Training(Settings):
    """How the weights are found.

    Attributes
    ----------
    optimizers : tuple of str
        Names in ``training/optimizers.py``.
    learning_rate : float
        For every optimizer that ``learning_rates`` does not name.
    learning_rates : dict
        Rates of single optimizers.
    momentum : float
        Of SGDM.
    schedule : {"constant", "cosine"}
        Of the learning rate, step by step: as it is, or along half a cosine to 0 at the end of the last epoch
        (Loshchilov and Hutter 2017, "SGDR", without restarts). Early stopping cuts it off.
    warmup : float
        Epochs (parts of one too) over which the rate grows linearly to its full height first (Goyal 2017, "Accurate,
        Large Minibatch SGD", section 2.2); the cosine takes the rest.
    weight_decay : float or None
        For adamw decoupled (``p -= rate x decay x p``; Loshchilov and Hutter 2019); for sgd and sgdm added to the
        gradient, which for sgd is the same and for sgdm goes through the momentum. Vectors (biases, the gains of norms)
        never decay. None: PyTorch's own, 0.01 of every tensor for adamw, 0 for the others.
    label_smoothing : float
        Share of the target that is spread evenly over all classes (Szegedy 2016, section 7). The validation loss is
        never smoothed.
    gradient_clip : float or None
        Largest norm of the gradient of all weights together; a longer one is shortened (Pascanu 2013). None: none.
    averaging : {"none", "ema"}
        ``ema``: validation, early stopping, the kept epoch and all predictions take the exponential moving average of
        the trained weights (and of batch norms' statistics, where those are trained) instead of the last step's.
    ema_decay : float
        Share of the average that stays at each step, reached as (1 + n) / (10 + n) after n steps: 0.99 remembers about
        the last 100 steps, 0.999 the last 1,000.
    resolutions : tuple of float
        Sides of the input in training, as shares of ``preprocess.size``: each batch of a network that is trained as a
        whole is shown at one of them, drawn at random, rounded to whole 32 pixels. Test images keep the full size.
    class_weights : {"balanced", "none"}
        ``balanced``: n / (classes x n of the class), from the training subset.
    seeds : tuple of int
        One run for each.
    """

    optimizers: tuple[str, ...] = Field(("adam",), min_length=1)
    learning_rate: float = Field(1e-4, gt=0.0, allow_inf_nan=False)
    learning_rates: dict[str, Annotated[float, Field(gt=0.0, allow_inf_nan=False)]] = {}
    momentum: float = Field(0.9, ge=0.0, lt=1.0)
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: float = Field(0.0, ge=0.0, allow_inf_nan=False)
    weight_decay: float | None = Field(None, ge=0.0, allow_inf_nan=False)
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0)
    gradient_clip: float | None = Field(None, gt=0.0, allow_inf_nan=False)
    averaging: Literal["none", "ema"] = "none"
    ema_decay: float = Field(0.99, ge=0.0, lt=1.0)
    batch_size: int = Field(32, ge=1)
    epochs: int = Field(50, ge=1)
    early_stopping: EarlyStopping | None = EarlyStopping()
    resolutions: tuple[Annotated[float, Field(ge=0.25, le=2.0)], ...] = Field((1.0,), min_length=1)
    class_weights: Literal["balanced", "none"] = "balanced"
    seeds: tuple[int, ...] = Field((0,), min_length=1)

    @model_validator(mode="after")
    def _settings_that_fit(self) -> Training:
        if self.warmup >= self.epochs and self.warmup > 0:
            raise ValueError(f"warmup must be less than epochs ({self.epochs}): the full rate would never be reached")
        without = [o for o in self.optimizers if o not in DECAYING]
        if self.weight_decay is not None and without:
            raise ValueError(f"weight_decay is for {', '.join(DECAYING)}, not for {', '.join(without)}")
        return self


class Inference(Settings):
    """How a trained network is asked, in validation, testing and wherever the run is used later.

    Attributes
    ----------
    flips : bool
        Probabilities and masks are means over the image and its mirror image, at twice the time. What scikit-learn
        fitted (forests, fusions) is asked once all the same.
    """

    flips: bool = False


class Ensemble(Settings):
    """A further configuration of the study: the mean of the probabilities of several of its networks.

    Attributes
    ----------
    choice : {"validation", "all"}
        ``validation``: in each fold, those members whose mean has the least log loss on that fold's validation images,
        out of all subsets of the study's configurations (`sonobreast.evaluation.ensemble`). ``all``: every one.
    """

    choice: Literal["validation", "all"] = "validation"


class Recipe(Settings):
    """All settings of a study.

    Attributes
    ----------
    settings_of : dict
        Architecture, as in ``model.architectures`` -> dotted setting -> value: what differs for this one. Of images,
        division and preprocessing nothing can, nor optimizers and seeds: all members of a study share them.
    ensemble : Ensemble or None
    ours : dict
        Setting (dotted name) -> why: choices that the paper does not state. Shown in the recipe and the report.
    """

    schema_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    title: str = ""
    paper: str | None = None
    data: Data = Data()
    split: Split = Split()
    preprocess: Preprocess = Preprocess()
    augment: Augment = Augment()
    head: Head = Head()
    model: Model
    segmentation: Segmentation = Segmentation()
    training: Training = Training()
    inference: Inference = Inference()
    settings_of: dict[str, dict[str, Any]] = {}
    ensemble: Ensemble | None = None
    ours: dict[str, str] = {}

    @model_validator(mode="after")
    def _unique_and_known(self) -> Recipe:
        for name, values in (
            ("model.architectures", self.model.architectures),
            ("training.optimizers", self.training.optimizers),
            ("training.seeds", self.training.seeds),
            ("data.classes", self.data.classes or ()),
        ):
            if len(set(values)) != len(values):
                raise ValueError(f"{name} names something twice")
        keys = set(_known_keys())  # of any recipe: a setting may be switched off in this one
        for key in self.ours:
            if key not in keys:
                raise ValueError(f"ours.{key} names no setting; {nearest(key, keys)}")
        for name in self.settings_of:
            self.of(name)
        return self

    def of(self, name: str) -> Recipe:
        """The recipe as one architecture takes it, with its ``settings_of``.

        Raises
        ------
        ValueError
            For a setting that is unknown, shared by all architectures, or does not fit.
        """
        own = self.settings_of.get(name)
        if not own:
            return self
        content = self.model_dump(exclude={"settings_of"})
        for key, value in own.items():
            group, _, setting = key.partition(".")
            if group not in _OWN or not setting or key in _SHARED:
                raise ValueError(
                    f"settings_of.{name}.{key}: a setting of {', '.join(_OWN)} is wanted; {', '.join(_SHARED)} are "
                    "the same for all"
                )
            if setting not in content[group]:
                raise ValueError(f"settings_of.{name}: unknown key {key!r}; {nearest(key, list(_known_keys()))}")
            content[group][setting] = value
        try:
            merged = Recipe.model_validate(content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ValueError(f"settings_of.{name}.{where}: {first['msg'].removeprefix('Value error, ')}") from error
        return merged.model_copy(update={"settings_of": self.settings_of})


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings in a nested mapping."""
    for key, value in content.items():
        if isinstance(value, Mapping) and value and prefix + key not in _TABLES:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def recipe_names() -> list[str]:
    """Names of the recipes that come with the package."""
    folder = resources.files("sonobreast") / "recipes"
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml"))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by name or path and apply ``key=value`` overrides.

    Parameters
    ----------
    name : str
        A recipe of the package, or the path of a YAML file. A recipe may say ``extends: NAME``.
    overrides : sequence of str
        ``dotted.key=value`` with the value in YAML, for example ``training.epochs=3``.

    Raises
    ------
    SonobreastError
        Unknown recipe, unknown key (with the nearest valid ones), or a value that does not fit.
    """
    content = _read(name, seen=())
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, origin=name)


def parse_recipe(content: Mapping[str, Any], origin: str | Path) -> Recipe:
    """Validate a mapping as a recipe; see `load_recipe` for the errors."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                lines.append(f"unknown key {key!r}; {nearest(key, _known_keys())}")
            elif item["type"] == "missing":
                lines.append(f"{key!r} is missing")
            else:
                given = "" if isinstance(item["input"], dict) else f" (given: {item['input']!r})"
                lines.append(f"{key or 'recipe'}: {item['msg'].removeprefix('Value error, ')}{given}")
        raise SonobreastError("the recipe is not valid: " + "; ".join(lines), file=origin) from error


def _known_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        optional: dict[str, type[BaseModel]] = {"early_stopping": EarlyStopping, "ensemble": Ensemble}
        annotation: Any = optional.get(name, field.annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _known_keys(annotation, f"{prefix}{name}.")
        yield prefix + name


def _read(name: str, seen: tuple[str, ...]) -> dict[str, Any]:
    if name in seen:
        raise SonobreastError(f"recipes extend one another in a circle: {' -> '.join((*seen, name))}")
    path = Path(name)
    if name in recipe_names():
        text = (resources.files("sonobreast") / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    elif path.suffix in (".yaml", ".yml") and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SonobreastError(f"the recipe cannot be read ({error})", file=path) from error
    else:
        raise SonobreastError(
            f"there is no recipe {name!r}; {nearest(name, recipe_names())}",
            remedy="give one of these names or the path of a .yaml file",
        )
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SonobreastError(f"the recipe is not valid YAML ({error})", file=name) from error
    if not isinstance(content, dict):
        raise SonobreastError("the recipe is not a mapping of settings", file=name)
    base = content.pop("extends", None)
    if base is None:
        return content
    beside = path.parent / str(base)  # as in a file of the package, or from the folder of the command
    return _merge(_read(str(beside if beside.is_file() else base), (*seen, name)), content)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SonobreastError(f"--set takes key=value, not {override!r}", remedy="for example --set training.epochs=3")
    known = list(_known_keys())
    parents = ("data.subsample.", "training.learning_rates.", "ours.")
    if key not in known and not key.startswith(parents):
        raise SonobreastError(f"--set names an unknown setting {key!r}; {nearest(key, known)}")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SonobreastError(f"--set {override!r}: the value is not valid YAML ({error})") from error
    if isinstance(value, str):
        with suppress(ValueError):  # YAML 1.1 reads 1e-4 as text
            value = float(value)
    own = next((p for p in parents if key.startswith(p)), None)  # behind these, a name may have dots of its own
    *parts, last = key.split(".") if own is None else key.split(".", own.count("."))
    for part in parts:
        inner = content.get(part)
        content[part] = inner = dict(inner) if isinstance(inner, dict) else {}
        content = inner
    content[last] = value


def dump_yaml(content: Mapping[str, Any]) -> str:
    """YAML text with the keys in the given order."""
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110)
