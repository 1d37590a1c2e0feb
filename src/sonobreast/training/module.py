"""Fine-tuning of a backbone, in part or whole, with Lightning."""

from __future__ import annotations

import copy
import signal
import threading
import time
import warnings
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from sonobreast.config import Recipe
from sonobreast.models.heads import build_head
from sonobreast.models.zoo import Backbone, fresh_network, tensors_of_last_stages
from sonobreast.training.frozen import (
    Epoch,
    Fitted,
    Images,
    Progress,
    Watch,
    check_finite,
    class_weights,
    network_input,
    number_of_views,
    weighted_loss,
)
from sonobreast.training.optimizers import build_optimizer

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
    """Backbone and head under training; batches are indices into the images, which are augmented here, together.

    Lightning's hooks are used as its documentation has them; the class adds no options of its own.
    """

    def __init__(
        self, backbone: Backbone, images: Images, train: NDArray[np.intp], recipe: Recipe, optimizer: str, seed: int
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.images = images
        self.recipe = recipe
        self.optimizer_name = optimizer
        self.seed = seed
        self.head = build_head(backbone.features, len(images.classes), recipe.head)
        self.changed = trainable_tensors(backbone, recipe)
        for name, parameter in backbone.network.named_parameters():
            parameter.requires_grad_(name in self.changed)
        self.train()  # Lightning keeps the modes it finds, and a backbone comes in inference mode
        self.still = self._modules_in_inference_mode()
        self.register_buffer(
            "weight",
            class_weights(images.label[torch.from_numpy(train)], len(images.classes), recipe),
            persistent=False,
        )
        self.sums: dict[str, float] = {}

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

    def forward(self, images: Tensor) -> Tensor:
        """Logits: (B, 3, H, W) to (B, C)."""
        # Convolutions on the CPU are up to three times faster with the channels last.
        logits: Tensor = self.head(self.backbone(images.to(memory_format=torch.channels_last)))
        return logits

    def on_train_epoch_start(self) -> None:
        self.sums = {"loss": 0.0, "hits": 0.0, "n": 0.0}

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        for module in self.still:
            module.eval()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        index = batch.cpu().numpy()
        view = self.current_epoch % number_of_views(self.recipe)
        inputs = network_input(self.images, index, self.recipe, self.backbone, view, seed=self.seed)
        label = self.images.label[torch.from_numpy(index)].to(self.device)
        logits = self(inputs.to(self.device))
        loss = weighted_loss(logits, label, self.weight)
        self.sums["loss"] += float(loss.detach()) * len(label)
        self.sums["hits"] += float((logits.detach().argmax(dim=1) == label).sum())
        self.sums["n"] += len(label)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [p for p in self.parameters() if p.requires_grad]
        return build_optimizer(self.optimizer_name, parameters, self.recipe.training)

    def trained_state(self) -> dict[str, Tensor]:
        """A copy of what training changes."""
        state = {f"head.{k}": v for k, v in self.head.state_dict().items()}
        state |= {f"backbone.{k}": v for k, v in self.backbone.network.state_dict().items() if k in self.changed}
        return {k: v.detach().cpu().clone() for k, v in state.items()}

    @torch.inference_mode()
    def logits(self, index: NDArray[np.intp]) -> Tensor:
        """Logits of images as they are, in inference mode: (n, C), on the CPU."""
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        parts = [
            self(network_input(self.images, part, self.recipe, self.backbone, None).to(self.device)).cpu()
            for part in np.array_split(index, max(1, len(index) // 32))
        ]
        for module, mode in modes:
            module.training = mode
        return torch.cat(parts)


class _Judge(Callback):
    """After each epoch: validation figures, best weights, early stopping, by the same rules as for frozen features."""

    def __init__(self, validation: NDArray[np.intp], progress: Progress | None) -> None:
        self.validation = validation
        self.progress = progress
        self.history: list[Epoch] = []
        self.watch: Watch | None = None
        self.best: dict[str, Tensor] = {}

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        module: FineTuning = pl_module
        self.watch = self.watch or Watch(module.recipe.training.early_stopping)
        logits = module.logits(self.validation)
        label = module.images.label[torch.from_numpy(self.validation)]
        row = Epoch(
            epoch=len(self.history) + 1,
            train_loss=module.sums["loss"] / module.sums["n"],
            train_accuracy=module.sums["hits"] / module.sums["n"],
            validation_loss=float(functional.cross_entropy(logits, label)),
            validation_accuracy=float((logits.argmax(dim=1) == label).float().mean()),
        )
        check_finite(row)
        self.history.append(row)
        if self.watch.see(row):
            self.best = module.trained_state()
        if self.watch.over:
            trainer.should_stop = True
        if self.progress is not None:
            self.progress(1)


def fit_network(
    backbone: Backbone,
    images: Images,
    train: NDArray[np.intp],
    validation: NDArray[np.intp],
    recipe: Recipe,
    optimizer: str,
    seed: int,
    progress: Progress | None = None,
) -> Fitted:
    """Fine-tune a copy of a backbone together with a head; parameters and errors as `fit_head`."""
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning(\..*)?")
        torch.manual_seed(seed)
        module = FineTuning(_own_copy(backbone, seed), images, train, recipe, optimizer, seed)
        module.backbone.to(memory_format=torch.channels_last)
        loader: DataLoader[Any] = DataLoader(
            torch.from_numpy(train),  # type: ignore[arg-type]
            batch_size=recipe.training.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(seed),
        )
        judge = _Judge(validation, progress)
        trainer = lightning.Trainer(
            max_epochs=recipe.training.epochs,
            accelerator="auto",
            devices=1,
            callbacks=[judge],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        _run(trainer, module, loader)
        module.load_state_dict(_full_names(judge.best), strict=False)
        probability = module.logits(np.arange(len(images.names))).softmax(dim=1).numpy()
    assert judge.watch is not None
    return Fitted(judge.best, tuple(judge.history), judge.watch.best_epoch, probability, time.perf_counter() - started)


def _own_copy(backbone: Backbone, seed: int) -> Backbone:
    """A copy whose tensors without pre-trained values are drawn from the run's own seed."""
    copied = copy.deepcopy(backbone)
    if backbone.coverage.missing:
        drawn = fresh_network(backbone.timm_name, seed).state_dict()
        copied.network.load_state_dict({k: drawn[k] for k in backbone.coverage.missing}, strict=False)
    return copied


def _run(trainer: Any, module: FineTuning, loader: DataLoader[Any]) -> None:
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
