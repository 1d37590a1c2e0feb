"""Fine-tuning of a backbone, in part or whole, with Lightning.

Training may be in bfloat16, with float32 weights and gradients; every figure and probability is computed in float32.
"""

from __future__ import annotations

import copy
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from sonobreast.config import Recipe
from sonobreast.environment import processor
from sonobreast.models.forward import has_bfloat16
from sonobreast.models.heads import build_head
from sonobreast.models.joint import JointHead, mask_loss
from sonobreast.models.mirror import with_mirror
from sonobreast.models.quick import plan_quick, quick
from sonobreast.models.zoo import Backbone, fresh_network, tensors_of_last_stages
from sonobreast.training.averaging import Averaging
from sonobreast.training.batches import Ahead, Batch, Inputs, parts
from sonobreast.training.fitted import (
    Epoch,
    Fitted,
    Lesions,
    MaskFigures,
    Progress,
    Watch,
    class_weights,
    epoch_row,
    weighted_loss,
)
from sonobreast.training.frozen import number_of_views
from sonobreast.training.images import Images
from sonobreast.training.optimizers import build_optimizer, rate_factor
from sonobreast.training.speed import fastest

Precision = Literal["float32", "bfloat16"]
_DTYPE: dict[Precision, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_KEPT = 2**28  # bytes of validation inputs that are kept from epoch to epoch
_NORMS = (nn.modules.batchnorm._BatchNorm,)


def trainable_tensors(backbone: Backbone, recipe: Recipe) -> frozenset[str]:
    """Names of the backbone's tensors that training changes."""
    if recipe.model.backbone == "frozen":
        return frozenset(backbone.coverage.missing)
    if recipe.model.trainable == "all":
        return frozenset(backbone.network.state_dict())
    # What no file gave is trained wherever it stands: frozen, it would stay noise.
    return frozenset(tensors_of_last_stages(backbone.network, recipe.model.trainable)) | set(backbone.coverage.missing)


class FineTuning(lightning.LightningModule):
    """Backbone and head under training; batches are indices into the images and their augmented inputs.

    Lightning's hooks are used as its documentation has them; the class adds no options of its own.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Images,
        train: NDArray[np.intp],
        recipe: Recipe,
        optimizer: str,
        seed: int,
        precision: Precision = "float32",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.images = images
        self.recipe = recipe
        self.optimizer_name = optimizer
        self.seed = seed
        self.training_images = len(train)
        self.dtype_of_steps = _DTYPE[precision]
        self.head = head_of(backbone, len(images.classes), recipe)
        self.changed = trainable_tensors(backbone, recipe)
        for name, parameter in backbone.network.named_parameters():
            parameter.requires_grad_(name in self.changed)
        self.inputs = Inputs(images, recipe, backbone, seed, device(), train)
        # Of a cut network only a part is called, in a way of timm's own; no cut network is fine-tuned.
        self.plan = plan_quick(backbone.network, self.inputs(train[:1], None).cpu())
        self.train()  # Lightning keeps the modes it finds, and a backbone comes in inference mode
        self.still = self._modules_in_inference_mode()
        self.register_buffer(
            "weight",
            class_weights(images.label[torch.from_numpy(train)], len(images.classes), recipe),
            persistent=False,
        )
        self.steps: list[tuple[Tensor, Tensor, int]] = []

    weight: Tensor

    def _modules_in_inference_mode(self) -> list[nn.Module]:
        """Frozen modules, and batch norms whose pre-trained statistics are to stay."""
        keep = self.recipe.model.batch_norm == "inference"
        pretrained = set(self.backbone.network.state_dict()) - set(self.backbone.coverage.missing)
        still = []
        for prefix, module in self.backbone.network.named_modules():
            own = [f"{prefix}.{k}" if prefix else k for k, _ in module.named_parameters(recurse=True)]
            frozen = bool(own) and not any(k in self.changed for k in own)
            held_norm = keep and isinstance(module, _NORMS) and bool(own) and all(k in pretrained for k in own)
            if frozen or held_norm:
                still.append(module)
        return still

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits of the class (B, C) and, of a network that segments, of the mask (B, 1, H, W), both float32.

        In inference mode all arithmetic is float32.
        """
        dtype = self.dtype_of_steps if self.training else torch.float32
        if not isinstance(self.head, JointHead):
            with quick(self.backbone.network, self.plan, dtype):
                features = self.backbone(images)
            return self.head(features.float()), None
        with quick(self.backbone.network, self.plan, dtype):
            pooled, maps = self.backbone.maps(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            mask = self.head.segment(images, maps)
        return self.head.classify(pooled, maps), mask

    def on_train_epoch_start(self) -> None:
        self.steps = []

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self.keep_still()

    def keep_still(self) -> None:
        """Put what keeps its statistics into inference mode."""
        for module in self.still:
            module.eval()

    def view(self) -> int:
        """Number of the view that this epoch shows."""
        return self.current_epoch % number_of_views(self.recipe)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        index, inputs, truth = batch
        inputs, truth = self.at_a_resolution(inputs, truth)
        label = self.inputs.label[index.to(self.inputs.device)]
        logits, mask = self(inputs)
        loss = weighted_loss(logits, label, self.weight, self.recipe.training.label_smoothing)
        if mask is not None and truth is not None:
            settings = self.recipe.segmentation
            loss = settings.classification * loss + mask_loss(mask, truth, self.known(index), settings)
        hits = (logits.detach().argmax(dim=1) == label).sum()
        self.steps.append((loss.detach(), hits, len(label)))  # read after the epoch: no step waits for a GPU
        return loss

    def at_a_resolution(self, inputs: Tensor, truth: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """A batch and its masks at one of the recipe's resolutions, drawn from the run's seed and the step."""
        shares = self.recipe.training.resolutions
        share = shares[int(np.random.default_rng([self.seed, self.global_step, 4]).integers(len(shares)))]
        side = max(32, 32 * round(share * inputs.shape[2] / 32))
        if share == 1.0 or side == inputs.shape[2]:
            return inputs, truth
        resized = functional.interpolate(inputs, size=(side, side), mode="bilinear", antialias=True)
        masks = None if truth is None else functional.interpolate(truth, size=(side, side), mode="area")
        return resized.contiguous(memory_format=torch.channels_last), masks

    def figures(self) -> tuple[float, float]:
        """Training loss and accuracy, means over the epoch's images."""
        n = sum(k for *_, k in self.steps)
        return sum(float(loss) * k for loss, _, k in self.steps) / n, sum(int(h) for _, h, _ in self.steps) / n

    def known(self, index: Tensor) -> Tensor:
        """Whether the mask of each image is known, bool (B,)."""
        assert self.inputs.masks is not None
        return torch.from_numpy(self.inputs.masks.known[index.cpu().numpy()]).to(self.inputs.device)

    def configure_optimizers(self) -> Any:
        settings = self.recipe.training
        optimizer = build_optimizer(self.optimizer_name, [p for p in self.parameters() if p.requires_grad], settings)
        if settings.schedule == "constant" and settings.warmup == 0:
            return optimizer
        steps = -(-self.training_images // settings.batch_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps, settings))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def trained_tensors(self) -> dict[str, Tensor]:
        """What training changes, by the names of a run's file: ``head.`` and ``backbone.``."""
        state = {f"head.{k}": v for k, v in self.head.state_dict(keep_vars=True).items()}
        network = self.backbone.network.state_dict(keep_vars=True)
        return state | {f"backbone.{k}": v for k, v in network.items() if k in self.changed}

    def trained_state(self) -> dict[str, Tensor]:
        """A copy of `trained_tensors`."""
        return {k: v.detach().cpu().clone() for k, v in self.trained_tensors().items()}

    @torch.inference_mode()
    def outputs(self, batches: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor | None]]:
        """What `forward` gives for images as they are, in inference mode and on the CPU, part by part.

        With ``inference.flips`` each is averaged with that of the mirror image.
        """
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        for batch in batches:
            logits, mask = with_mirror(self, batch) if self.recipe.inference.flips else self(batch)
            yield logits.cpu(), None if mask is None else mask.cpu()
        for module, mode in modes:
            module.training = mode

    def as_they_are(self, index: NDArray[np.intp]) -> Iterator[Tensor]:
        """Inputs of images without augmentation, in parts."""
        return (self.inputs(part, None) for part in parts(index))


class _Judge(Callback):
    """After each epoch: validation figures, best weights, early stopping, by the same rules as for frozen features.

    With ``averaging`` all of it is of the averaged weights.
    """

    def __init__(
        self, validation: NDArray[np.intp], progress: Progress | None, averaging: Averaging | None = None
    ) -> None:
        self.validation = validation
        self.averaging = averaging
        self.progress = progress
        self.history: list[Epoch] = []
        self.watch: Watch | None = None
        self.best: dict[str, Tensor] = {}
        self.best_logits = torch.empty(0)
        self.kept: list[Tensor] = []

    def _inputs(self, module: FineTuning) -> Iterable[Tensor]:
        """Those of the validation subset: the same in every epoch, so kept where they are not too many."""
        if 4 * module.images.pixels[:1].size * len(self.validation) > _KEPT:
            return module.as_they_are(self.validation)
        self.kept = self.kept or list(module.as_they_are(self.validation))
        return self.kept

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        average = None if self.averaging is None else self.averaging.average
        with nullcontext() if average is None else average.shown():
            self._look(trainer, pl_module)
        if self.progress is not None:
            self.progress(1)

    def _look(self, trainer: Any, module: FineTuning) -> None:
        self.watch = self.watch or Watch(module.recipe.training.early_stopping)
        found = zip(parts(self.validation), module.outputs(self._inputs(module)), strict=True)
        logits, masks = _judged(found, module)
        label = module.images.label[torch.from_numpy(self.validation)]
        loss, accuracy = module.figures()
        row = epoch_row(len(self.history) + 1, loss, accuracy, logits, label, masks)
        self.history.append(row)
        if self.watch.see(row):
            self.best, self.best_logits = module.trained_state(), logits
        if self.watch.over:
            trainer.should_stop = True


def fit_network(
    backbone: Backbone,
    images: Images,
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    recipe: Recipe,
    optimizer: str,
    seed: int,
    progress: Progress | None = None,
    precision: Precision | None = None,
) -> Fitted:
    """Fine-tune a copy of a backbone together with a head; parameters and errors as `fit_head`.

    Parameters
    ----------
    precision : {"float32", "bfloat16"} or None
        Of the training steps; None: `choose_precision`.
    """
    started = time.perf_counter()
    precision = precision or choose_precision(backbone, images, train, recipe)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _without_denormals():
        warnings.filterwarnings("ignore", module=r"lightning(\..*)?")
        torch.manual_seed(seed)
        module = FineTuning(_own_copy(backbone, seed), images, train, recipe, optimizer, seed, precision)
        module.to(memory_format=torch.channels_last)
        loader: DataLoader[Any] = DataLoader(
            torch.from_numpy(train),  # type: ignore[arg-type]
            batch_size=recipe.training.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )
        averaging = Averaging(recipe.training.ema_decay) if recipe.training.averaging == "ema" else None
        judge = _Judge(validation, progress, averaging)
        trainer = lightning.Trainer(
            max_epochs=recipe.training.epochs,
            accelerator=device().type,
            devices=1,
            callbacks=[judge] if averaging is None else [averaging, judge],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=recipe.training.gradient_clip,
        )
        _run(trainer, module, Ahead(loader, lambda index: module.inputs.with_masks(index, module.view())))
        module.load_state_dict(_full_names(judge.best), strict=False)
        module.to(device())
        found = torch.empty(len(images.names), len(images.classes))
        found[torch.from_numpy(validation)] = judge.best_logits  # kept, so not computed again
        found[torch.from_numpy(train)] = torch.cat([k for k, _ in module.outputs(module.as_they_are(train))])
        others = np.setdiff1d(np.arange(len(images.names)), np.concatenate([train, validation]))
        lesions = []
        for part, (logits, mask) in zip(parts(others), module.outputs(module.as_they_are(others)), strict=True):
            found[torch.from_numpy(part)] = logits
            if mask is not None:
                lesions.append((255.0 * mask[:, 0].sigmoid()).round().to(torch.uint8).numpy())
        probability = found.softmax(dim=1).numpy()
    assert judge.watch is not None
    return Fitted(
        judge.best,
        tuple(judge.history),
        judge.watch.best_epoch,
        probability,
        time.perf_counter() - started,
        precision,
        Lesions(others, np.concatenate(lesions)) if lesions else None,
    )


def head_of(backbone: Backbone, classes: int, recipe: Recipe) -> nn.Sequential | JointHead:
    """The part that is trained from the start; its weights are drawn from the current random state."""
    if backbone.decoder is None:
        return build_head(backbone.features, classes, recipe.head)
    return JointHead(backbone.features, backbone.stages, classes, recipe.head, recipe.segmentation, backbone.decoder)


def _judged(
    found: Iterable[tuple[NDArray[np.intp], tuple[Tensor, Tensor | None]]], module: FineTuning
) -> tuple[Tensor, MaskFigures | None]:
    """Logits of the validation subset, (n, C), and how its masks are met."""
    settings, masks = module.recipe.segmentation, module.inputs.masks
    logits: list[Tensor] = []
    losses: list[tuple[float, int]] = []
    dice: list[Tensor] = []
    for part, (of_class, of_mask) in found:
        logits.append(of_class)
        if of_mask is None or masks is None:
            continue
        truth, known = torch.from_numpy(masks.resized(part))[:, None], torch.from_numpy(masks.known[part])
        losses.append((float(mask_loss(of_mask, truth.float(), known, settings)), int(known.sum())))
        lesion = known & truth.any(3).any(2).any(1)
        given, wanted = of_mask[lesion].sigmoid() >= settings.threshold, truth[lesion]
        dice.append(2.0 * (given & wanted).sum((1, 2, 3)) / (given.sum((1, 2, 3)) + wanted.sum((1, 2, 3))))
    together = torch.cat(logits)
    if not losses:
        return together, None
    n = sum(k for _, k in losses)
    all_dice = torch.cat(dice)
    mean_dice = float(all_dice.mean()) if len(all_dice) else None
    return together, MaskFigures(settings.classification, sum(v * k for v, k in losses) / max(1, n), mean_dice)


def device() -> torch.device:
    """Where networks are fine-tuned: the first CUDA device if there is one, else the CPU."""
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def choose_precision(backbone: Backbone, images: Images, train: NDArray[np.intp], recipe: Recipe) -> Precision:
    """The precision of the training steps: the recipe's, or the faster one on this machine.

    Where bfloat16 is multiplied in hardware, a few steps of this very network and batch size are timed in both, once
    (`fastest`).
    """
    wanted = recipe.model.precision
    if wanted != "auto":
        return wanted
    place = device()
    if not (torch.cuda.is_bf16_supported() if place.type == "cuda" else has_bfloat16()):
        return "float32"
    size = recipe.training.batch_size
    index = np.resize(train, size)
    machine = torch.cuda.get_device_name(place) if place.type == "cuda" else processor()
    trained = len(backbone.coverage.missing) if recipe.model.backbone == "frozen" else recipe.model.trainable
    key = (
        f"{machine}; {torch.get_num_threads()} threads; torch {torch.__version__}; {backbone.timm_name}; batch {size}; "
        f"{recipe.preprocess.size} px; trained {trained}; batch norm {recipe.model.batch_norm}"
        + (f"; {backbone.decoder} {recipe.segmentation.channels}" if backbone.decoder else "")
    )
    made: dict[Precision, Callable[[], object]] = {}

    def steps(precision: Precision) -> Callable[[], object]:
        def step() -> object:
            if precision not in made:
                made[precision] = _one_step(backbone, images, index, recipe, precision)
            return made[precision]()

        return step

    with torch.random.fork_rng(devices=[]), _without_denormals():
        chosen = fastest(key, {"float32": steps("float32"), "bfloat16": steps("bfloat16")})
    return "bfloat16" if chosen == "bfloat16" else "float32"


def _one_step(
    backbone: Backbone, images: Images, index: NDArray[np.intp], recipe: Recipe, precision: Precision
) -> Callable[[], object]:
    """A training step of a copy of the network, to be timed."""
    module = FineTuning(_own_copy(backbone, 0), images, index, recipe, "sgd", 0, precision).to(device())
    module.to(memory_format=torch.channels_last)
    batch = (torch.from_numpy(index), *module.inputs.with_masks(index, None))

    def step() -> object:
        module.keep_still()
        module.zero_grad()
        module.training_step(batch, 0).backward()  # type: ignore[no-untyped-call]
        module.steps.clear()
        if batch[1].is_cuda:
            torch.cuda.synchronize()
        return None

    return step


@contextmanager
def _without_denormals() -> Iterator[None]:
    """Numbers below 1e-38 become 0 in this thread: processors are slow with them, and no figure shows them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _own_copy(backbone: Backbone, seed: int) -> Backbone:
    """A copy whose tensors without pre-trained values are drawn from the run's own seed."""
    copied = copy.deepcopy(backbone)
    if backbone.coverage.missing:
        drawn = fresh_network(backbone.timm_name, seed).state_dict()
        copied.network.load_state_dict({k: drawn[k] for k in backbone.coverage.missing}, strict=False)
    return copied


def _run(trainer: Any, module: FineTuning, loader: Ahead) -> None:
    """Train; Ctrl-C stays a KeyboardInterrupt (Lightning ends the process instead, and shuts out any further one)."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    try:
        trainer.fit(module, loader)
    except SystemExit as error:
        if trainer.interrupted:
            raise KeyboardInterrupt from error
        raise
    finally:
        if main and handler is not None:
            signal.signal(signal.SIGINT, handler)


def _full_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("backbone.", "backbone.network.", 1): v for k, v in state.items()}
