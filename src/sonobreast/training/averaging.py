"""An exponential moving average of the weights beside those that the optimizer moves.

The average of the last steps lies nearer to the middle of a flat minimum than any one of them (Polyak and Juditsky
1992; Izmailov 2018, "Averaging Weights Leads to Wider Optima"; exponential as in Tarvainen and Valpola 2017, "Mean
teachers"). torch's own `AveragedModel` copies a whole module, here with the images that hang on it; these are the
trained tensors alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor


def decay_at(update: int, decay: float) -> float:
    """Share of the old average that stays: min(decay, (1 + n) / (10 + n)) at the n-th update after the first copy.

    A short training would otherwise end with an average in which its first, random head still shows. The rule is that
    of TensorFlow's `tf.train.ExponentialMovingAverage` (``num_updates``).
    """
    return min(decay, (1 + update) / (10 + update))


class Average:
    """The averages of some tensors; integers (counters of batch norms) are copied.

    Parameters
    ----------
    tensors : iterable of Tensor
        Parameters and buffers under training, where they lie. They are looked at again at every `update`.
    decay : float
        In [0, 1); 0 follows the weights exactly.
    """

    def __init__(self, tensors: Iterable[Tensor], decay: float) -> None:
        self.tensors = list(tensors)
        self.decay = decay
        self.updates = -1
        self.kept = [t.detach().clone() for t in self.tensors]

    @torch.no_grad()
    def update(self) -> None:
        """Take up the tensors after a step: average = decay x average + (1 - decay) x tensor; the first is copied."""
        self.updates += 1
        decay = 0.0 if self.updates == 0 else decay_at(self.updates, self.decay)
        pairs = [(k, t.detach()) for k, t in zip(self.kept, self.tensors, strict=True)]
        floats = [p for p in pairs if p[0].is_floating_point()]
        torch._foreach_lerp_([k for k, _ in floats], [t for _, t in floats], 1.0 - decay)
        for kept, tensor in pairs:
            if not kept.is_floating_point():
                kept.copy_(tensor)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Put the averages in the tensors' place for a while; nothing is copied, the optimizer's state stays."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for i, tensor in enumerate(self.tensors):
            tensor.data, self.kept[i] = self.kept[i], tensor.data


class Averaging(Callback):
    """Averages what a `sonobreast.training.module.FineTuning` trains, after every step."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Average | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = Average(pl_module.trained_tensors().values(), self.decay)  # now on their device

    def on_train_batch_end(self, *_: Any) -> None:
        assert self.average is not None
        self.average.update()
