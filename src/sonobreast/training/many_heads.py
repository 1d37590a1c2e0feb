"""Many heads on the features of one frozen backbone: each as `frozen.fit_head` trains it, in a fraction of its time.

One thread a core, one head after another in each. The gradients are written by hand (two matrix products a layer, no
autograd), all weights of a head are one vector that is updated at once, and an epoch allocates almost nothing. Heads
with the same seed and the same number of training images share the order of the batches and the dropout masks.

No head depends on which others are trained with it, so a study that was interrupted ends with the same numbers.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from sonobreast.config import Recipe
from sonobreast.errors import Diverged
from sonobreast.models.heads import Standardise, build_head
from sonobreast.training.fitted import Epoch, Fitted, Progress, Watch, class_weights, epoch_row
from sonobreast.training.frozen import Bank
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.images import Images
from sonobreast.training.optimizers import vector_update

_Done = tuple[int, Fitted | Diverged]
_GATHERED = 16 << 20  # bytes of features that a head gathers at once
_MEASURING = threading.Lock()  # the features of all training images at once: by one head at a time


@dataclass(frozen=True, eq=False)
class Job:
    """One head: the indices of its training and validation images, its optimizer and its seed."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    optimizer: str
    seed: int


def fit_heads(
    bank: Bank, images: Images, jobs: Sequence[Job], recipe: Recipe, progress: Progress | None = None
) -> Generator[_Done, None, None]:
    """Train many heads, on as many cores as PyTorch may use in the calling thread.

    Parameters
    ----------
    bank : Bank
    images : Images
    jobs : sequence of Job
    recipe : Recipe
    progress : callable or None
        Called in the calling thread with a number of epochs. Epochs that early stopping or a divergence saves count
        when their head ends, so that all calls add up to the epochs of the recipe times the number of jobs.

    Yields
    ------
    index : int
        Of the job. The order is that in which the heads are finished.
    fitted : Fitted or Diverged
        What `fit_head` returns or raises for this job, up to rounding.

    Notes
    -----
    At most three heads a core are in memory. Closing the iterator ends the training within an epoch.

    Raises
    ------
    SonobreastError
        As `check_head_settings`.
    """
    check_head_settings(recipe)
    cores = torch.get_num_threads()
    news: queue.SimpleQueue[int | _Done | BaseException] = queue.SimpleQueue()
    stop = threading.Event()

    def work(index: int, start: _Start) -> None:
        try:
            result = _fit(bank, images, jobs[index], start, recipe, news.put, stop)
            if result is not None:
                news.put((index, result))
        except BaseException as error:
            news.put(error)

    waiting = _starts(bank, images, jobs, recipe)
    with ThreadPoolExecutor(cores, initializer=_one_core) as pool:
        try:
            # More than there are cores: none waits while the caller writes a finished head.
            for index, start in islice(waiting, 2 * cores):
                pool.submit(work, index, start)
            left = len(jobs)
            while left:
                item = news.get()
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, int):
                    if progress is not None:
                        progress(item)
                else:
                    left -= 1
                    for index, start in islice(waiting, 1):
                        pool.submit(work, index, start)
                    yield item
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(cores)  # the threads' own setting would be inherited by later ones


def _one_core() -> None:
    """Settings of this thread alone."""
    torch.set_num_threads(1)
    # Moments of units that stopped learning fade through the denormal numbers, with which processors are slow: Adam
    # at a learning rate of 0.01 took 1,420 us a step with them, 670 without. Every epsilon is larger by far.
    torch.set_flush_denormal(True)


class _Draws:
    """What chance gives the heads of one seed: order of the images and dropout masks, epoch by epoch."""

    def __init__(self, seed: int, n: int, batch_size: int, width: int, dropout: float, masks: Tensor) -> None:
        self.n, self.batch_size, self.width, self.keep = n, batch_size, width, 1.0 - dropout
        self.order = torch.Generator().manual_seed(seed)
        self.masks = torch.Generator()
        self.masks.set_state(masks)
        self.drawn: list[tuple[Tensor, Tensor]] = []
        self.lock = threading.Lock()

    def of(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Permutation (n,), and which units stay (n, width), uint8, in the order of the permutation; epoch from 0."""
        with self.lock:
            while len(self.drawn) <= epoch:
                permutation = torch.randperm(self.n, generator=self.order)
                stays = torch.empty(self.n if self.keep < 1.0 else 0, self.width)
                for part in torch.split(stays, self.batch_size):  # one call a batch, as `nn.Dropout` does
                    part.bernoulli_(self.keep, generator=self.masks)
                self.drawn.append((permutation, stays.to(torch.uint8)))
            return self.drawn[epoch]


@dataclass(frozen=True, eq=False)
class _Start:
    """An untrained head and its draws, shared by the jobs of one seed and one number of training images."""

    head: nn.Sequential
    draws: _Draws


def _starts(bank: Bank, images: Images, jobs: Sequence[Job], recipe: Recipe) -> Iterator[tuple[int, _Start]]:
    """The jobs, those that share their draws after one another."""
    settings = recipe.training
    latest: tuple[int, int] | None = None
    for index in sorted(range(len(jobs)), key=lambda i: (jobs[i].seed, len(jobs[i].train))):
        seed, n = jobs[index].seed, len(jobs[index].train)
        if latest != (seed, n):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                head = build_head(bank.clean.shape[1], len(images.classes), recipe.head, standardise=bank.standardise)
                state = torch.random.get_rng_state()
            last = [layer for layer in head if isinstance(layer, nn.Linear)][-1]
            draws = _Draws(seed, n, settings.batch_size, last.in_features, recipe.head.dropout, state)
            latest, start = (seed, n), _Start(head, draws)
        yield index, start


@dataclass(frozen=True, eq=False)
class _Layer:
    """Views of a linear layer's weight (inputs, outputs) and bias (1, outputs), and of their gradients."""

    weight: Tensor
    bias: Tensor
    weight_gradient: Tensor
    bias_gradient: Tensor


def _layers(head: nn.Sequential) -> tuple[Tensor, Tensor, list[_Layer]]:
    """All weights of a head in one vector, a vector for their gradient, and the layers as views of both.

    Weights lie transposed, (inputs, outputs): both matrix products are faster so for batches of few images.
    """
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    sizes = [n for layer in linear for n in (layer.weight.numel(), layer.bias.numel())]
    weights = torch.empty(sum(sizes))
    gradient = torch.zeros_like(weights)
    views, gradients = torch.split(weights, sizes), torch.split(gradient, sizes)
    layers = []
    for i, layer in enumerate(linear):
        shape = (layer.in_features, layer.out_features)
        layers.append(
            _Layer(
                views[2 * i].view(shape),
                views[2 * i + 1].view(1, -1),
                gradients[2 * i].view(shape),
                gradients[2 * i + 1].view(1, -1),
            )
        )
        layers[i].weight.copy_(layer.weight.detach().t())
        layers[i].bias.copy_(layer.bias.detach())
    return weights, gradient, layers


@dataclass(frozen=True, eq=False)
class _Batch:
    """Views of the room of one batch, (B, ...) each."""

    features: Tensor
    mask: Tensor | None
    target: Tensor
    scale: Tensor
    logits: Tensor
    hidden: list[Tensor]
    delta: list[Tensor]
    dropped: Tensor
    ones: Tensor


@dataclass(frozen=True, eq=False)
class _Room:
    """Room for an epoch in the order of its images, (n, ...) each, and its batches.

    Attributes
    ----------
    features : Tensor, (n, F)
    mask : Tensor, (n, width), or None
        Factors of dropout.
    target : Tensor, (n, C)
        One-hot.
    batch_size : Tensor, (n, 1)
        Of each image's batch.
    scale : Tensor, (n, 1)
        Class weight over batch size.
    logits : Tensor, (n, C)
    """

    features: Tensor
    mask: Tensor | None
    target: Tensor
    batch_size: Tensor
    scale: Tensor
    logits: Tensor
    batches: list[_Batch]


def _room(n: int, layers: list[_Layer], batch_size: int, dropout: bool) -> _Room:
    width, classes = layers[-1].weight.shape
    mask = torch.empty(n, width) if dropout else None
    room = _Room(
        torch.empty(n, layers[0].weight.shape[0]),
        mask,
        torch.empty(n, classes),
        torch.empty(n, 1),
        torch.empty(n, 1),
        torch.empty(n, classes),
        [],
    )
    largest = min(n, batch_size)
    hidden, delta = ([torch.empty(largest, k.weight.shape[1]) for k in layers[:-1]] for _ in range(2))
    dropped, ones = torch.empty(largest, width), torch.ones(1, largest)
    for start in range(0, n, batch_size):
        part = slice(start, min(n, start + batch_size))
        size = part.stop - start
        room.batch_size[part] = size
        room.batches.append(
            _Batch(
                room.features[part],
                None if mask is None else mask[part],
                room.target[part],
                room.scale[part],
                room.logits[part],
                [h[:size] for h in hidden],
                [d[:size] for d in delta],
                dropped[:size],
                ones[:, :size],
            )
        )
    return room


def _fit(
    bank: Bank,
    images: Images,
    job: Job,
    start: _Start,
    recipe: Recipe,
    report: Callable[[int], None],
    stop: threading.Event,
) -> Fitted | Diverged | None:
    """Train one head; None if it was stopped."""
    started = time.perf_counter()
    settings = recipe.training
    with torch.no_grad():
        weights, gradient, layers = _layers(start.head)
        update = vector_update(job.optimizer, weights, gradient, settings)
        index, held_out = torch.from_numpy(job.train), torch.from_numpy(job.validation)
        standardise = None
        if isinstance(start.head[0], Standardise):
            standardise = Standardise(bank.clean.shape[1])
            with _MEASURING:
                standardise.measure(bank.take(None, index))
        clean = bank.take(None, held_out)
        if standardise is not None:
            clean = standardise(clean)
        label, held_out_label = images.label[index], images.label[held_out]
        class_weight = class_weights(label, len(images.classes), recipe)
        room = _room(len(index), layers, settings.batch_size, recipe.head.dropout > 0)
        rows = max(1, _GATHERED // (4 * bank.clean.shape[1]))
        history: list[Epoch] = []
        watch = Watch(settings.early_stopping)
        best = weights.clone()
        for epoch in range(settings.epochs):
            if stop.is_set():
                return None
            permutation, stays = start.draws.of(epoch)
            order = index[permutation]
            for first in range(0, len(order), rows):
                some = slice(first, first + rows)
                bank.take(epoch % len(bank.views), order[some], out=room.features[some])
            if standardise is not None:
                room.features.sub_(standardise.mean).div_(standardise.std)
            if room.mask is not None:
                room.mask.copy_(stays).div_(1.0 - recipe.head.dropout)
            shuffled = label[permutation]
            each = class_weight[shuffled]
            room.target.zero_().scatter_(1, shuffled[:, None], 1.0)
            torch.div(each[:, None], room.batch_size, out=room.scale)
            for batch in room.batches:
                _gradients(layers, batch, update.keep)
                update.step()
            loss = functional.cross_entropy(room.logits, shuffled, reduction="none") * each
            hits = int((room.logits.argmax(dim=1) == shuffled).sum())
            logits = _forward(layers, clean)
            try:
                row = epoch_row(epoch + 1, float(loss.mean()), hits / len(index), logits, held_out_label)
            except Diverged as error:
                report(settings.epochs - epoch)
                return error.with_traceback(None)  # which would keep all the room alive
            history.append(row)
            report(1)
            if watch.see(row):
                best.copy_(weights)
            if watch.over:
                break
        report(settings.epochs - len(history))
        weights.copy_(best)
        parts = []
        for part in torch.split(torch.arange(len(bank.clean)), rows):
            clean = bank.take(None, part)
            parts.append(_forward(layers, clean if standardise is None else standardise(clean)).softmax(dim=1))
        probability = torch.cat(parts).numpy()
    state = _state(start.head, layers, standardise)
    return Fitted(state, tuple(history), watch.best_epoch, probability, time.perf_counter() - started)


def _gradients(layers: list[_Layer], batch: _Batch, keep: float) -> None:
    """Forward and backward pass of one batch; leaves its logits, and its gradient beside ``keep`` times the last."""
    inputs = []
    values = batch.features
    for layer, hidden in zip(layers[:-1], batch.hidden, strict=True):
        inputs.append(values)
        values = torch.addmm(layer.bias, values, layer.weight, out=hidden).relu_()
    if batch.mask is not None:
        values = torch.mul(values, batch.mask, out=batch.dropped)
    inputs.append(values)
    torch.addmm(layers[-1].bias, values, layers[-1].weight, out=batch.logits)
    # The loss is each image's cross-entropy times its class' weight, divided by the batch's size.
    delta = torch.softmax(batch.logits, dim=1).sub_(batch.target).mul_(batch.scale)
    for k in range(len(layers) - 1, -1, -1):
        layer = layers[k]
        torch.addmm(layer.weight_gradient, inputs[k].t(), delta, beta=keep, out=layer.weight_gradient)
        torch.addmm(layer.bias_gradient, batch.ones, delta, beta=keep, out=layer.bias_gradient)
        if k > 0:
            delta = torch.mm(delta, layer.weight.t(), out=batch.delta[k - 1])
            if batch.mask is not None and k == len(layers) - 1:
                delta.mul_(batch.mask)
            torch.ops.aten.threshold_backward.grad_input(delta, batch.hidden[k - 1], 0.0, grad_input=delta)


def _forward(layers: list[_Layer], features: Tensor) -> Tensor:
    """Logits (n, C) in inference mode."""
    for layer in layers[:-1]:
        features = torch.addmm(layer.bias, features, layer.weight).relu_()
    return torch.addmm(layers[-1].bias, features, layers[-1].weight)


def _state(head: nn.Sequential, layers: list[_Layer], standardise: Standardise | None) -> dict[str, Tensor]:
    """The tensors of a head under the names that `fit_head` gives them."""
    state = {} if standardise is None else {f"head.0.{k}": v for k, v in standardise.state_dict().items()}
    names = [name for name, layer in head.named_children() if isinstance(layer, nn.Linear)]
    for name, layer in zip(names, layers, strict=True):
        state[f"head.{name}.weight"] = layer.weight.t().contiguous()
        state[f"head.{name}.bias"] = layer.bias[0].clone()
    return state
