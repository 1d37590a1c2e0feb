"""Optimizers by name, with the update rules and defaults of Keras, which the papers used.

PyTorch's Adam and RMSprop put epsilon elsewhere than Keras 3 does; with gradients near 1e-5 and epsilon 1e-7 that
changes the first steps visibly, so the two are written out here. SGDM is the same in both for a constant rate. NAdam
(Dozat 2016) warms its momentum up by 0.96^t in Keras and by 0.96^(0.004 t) in PyTorch; ``nadam`` is Keras'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, NAdam, Optimizer
from torch.optim.adam import adam

from sonobreast.config import DECAYING, Training
from sonobreast.errors import SonobreastError, nearest

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]


class KerasAdam(Optimizer):
    """Adam as in Keras 3 (`keras.src.optimizers.adam`), which follows the form before section 2.1 of Kingma and Ba.

    ``p -= lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + eps)`` with b1 = 0.9, b2 = 0.999, eps = 1e-7.
    """

    def __init__(self, params: Parameters, lr: float) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-7})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                state: dict[str, Any] = self.state[p]
                if not state:
                    state.update(step=0, m=torch.zeros_like(p), v=torch.zeros_like(p))
                state["step"] += 1
                t = state["step"]
                state["m"].lerp_(p.grad, 1 - b1)
                state["v"].mul_(b2).addcmul_(p.grad, p.grad, value=1 - b2)
                rate = group["lr"] * (1 - b2**t) ** 0.5 / (1 - b1**t)
                p.addcdiv_(state["m"], state["v"].sqrt().add_(group["eps"]), value=-rate)
        return loss


class KerasRMSprop(Optimizer):
    """RMSprop as in Keras 3 (`keras.src.optimizers.rmsprop`): ``p -= lr g / sqrt(v + eps)``, rho 0.9, eps 1e-7."""

    def __init__(self, params: Parameters, lr: float) -> None:
        super().__init__(params, {"lr": lr, "rho": 0.9, "eps": 1e-7})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient."""
        loss = _evaluate(closure)
        for group in self.param_groups:
            rho = group["rho"]
            for p in (p for p in group["params"] if p.grad is not None):
                state: dict[str, Any] = self.state[p]
                if not state:
                    state["v"] = torch.zeros_like(p)
                state["v"].mul_(rho).addcmul_(p.grad, p.grad, value=1 - rho)
                p.addcdiv_(p.grad, (state["v"] + group["eps"]).sqrt_(), value=-group["lr"])
        return loss


def _evaluate(closure: Callable[[], float] | None) -> float | None:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


OPTIMIZERS: dict[str, Callable[[Parameters, float, float], Optimizer]] = {
    "adam": lambda params, rate, _: KerasAdam(params, rate),
    "rmsprop": lambda params, rate, _: KerasRMSprop(params, rate),
    "sgdm": lambda params, rate, momentum: SGD(params, lr=rate, momentum=momentum),
    "sgd": lambda params, rate, _: SGD(params, lr=rate),
    "adamw": lambda params, rate, _: AdamW(params, lr=rate),
    # m^ = u(t+1) m / (1 - U(t+1)) + (1 - u(t)) g / (1 - U(t)) with u(t) = b1 (1 - 0.96^t / 2), U their product so far;
    # p -= lr m^ / (sqrt(v / (1 - b2^t)) + eps), as in Keras 3 (`keras.src.optimizers.nadam`).
    "nadam": lambda params, rate, _: NAdam(params, lr=rate, eps=1e-7, momentum_decay=1.0),
}


def check_optimizer(name: str) -> None:
    """Raise SonobreastError, with the nearest names, for an optimizer that is not in the table."""
    if name not in OPTIMIZERS:
        raise SonobreastError(
            f"no optimizer is called {name!r}; {nearest(name, OPTIMIZERS)}",
            remedy="give one of these names with --set training.optimizers=[...]",
        )


def build_optimizer(name: str, params: Parameters, settings: Training) -> Optimizer:
    """The optimizer of a run; its rate is ``learning_rates[name]``, else ``learning_rate``.

    With ``weight_decay`` the parameters are two groups: tensors of two or more dimensions decay, vectors (biases, the
    gains of norms) do not.
    """
    check_optimizer(name)
    rate = settings.learning_rates.get(name, settings.learning_rate)
    if settings.weight_decay is None:
        return OPTIMIZERS[name](params, rate, settings.momentum)
    if name not in DECAYING:
        raise SonobreastError(
            f"training.weight_decay is not written for the optimizer {name}",
            remedy=f"take one of {', '.join(DECAYING)}, or leave training.weight_decay out",
        )
    every = [p for p in params if isinstance(p, Tensor)]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in every if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in every if p.ndim < 2], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[name]([g for g in groups if g["params"]], rate, settings.momentum)


def rate_factor(step: int, steps_per_epoch: int, settings: Training) -> float:
    """What the learning rate is multiplied with in a step, 0 to 1.

    With W = warmup steps and T = all steps: (step + 1) / W below W, then 1, or (1 + cos(pi (step - W) / (T - W))) / 2.

    Parameters
    ----------
    step : int
        From 0.
    steps_per_epoch : int
    settings : Training
    """
    warmup, total = settings.warmup * steps_per_epoch, settings.epochs * steps_per_epoch
    if step < warmup:
        return min(1.0, (step + 1) / warmup)
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup))))


@dataclass(frozen=True)
class VectorUpdate:
    """The update of weights that lie in one vector, with the gradient in another, for training without autograd.

    Attributes
    ----------
    keep : float
        Share of the gradient vector that stays when the next gradient is added to it: the momentum.
    step : callable
        One update.
    """

    keep: float
    step: Callable[[], object]


def vector_update(name: str, weights: Tensor, gradient: Tensor, settings: Training) -> VectorUpdate:
    """The rule of `build_optimizer` for one vector of weights; equal up to rounding, with fewer passes over memory.

    Parameters
    ----------
    weights, gradient : Tensor, float32, (P,)
        Both are changed in place from outside and by ``step``. ``gradient`` starts with zeros.
    """
    check_optimizer(name)
    rate = settings.learning_rates.get(name, settings.learning_rate)
    if name in ("sgd", "sgdm"):
        keep = settings.momentum if name == "sgdm" else 0.0
        return VectorUpdate(keep, lambda: weights.add_(gradient, alpha=-rate))
    if name == "adam":
        return VectorUpdate(0.0, _fused_adam(weights, gradient, rate))
    if name == "rmsprop":
        return VectorUpdate(0.0, _fused_rmsprop(weights, gradient, rate))
    parameter = nn.Parameter(weights)
    parameter.grad = gradient
    if name == "adamw":
        return VectorUpdate(0.0, AdamW([parameter], lr=rate, fused=True).step)
    return VectorUpdate(0.0, build_optimizer(name, [parameter], settings).step)


def _fused_adam(weights: Tensor, gradient: Tensor, rate: float) -> Callable[[], None]:
    """PyTorch's Adam, which is one pass over memory; an epsilon that changes with the step gives it Keras' form.

    ``sqrt(1 - b2^t) m / (sqrt(v) + eps) = m / (sqrt(v / (1 - b2^t)) + eps / sqrt(1 - b2^t))``
    """
    b1, b2, epsilon = 0.9, 0.999, 1e-7
    m, v, steps = torch.zeros_like(weights), torch.zeros_like(weights), torch.zeros(())

    def step() -> None:
        _adam(weights, gradient, m, v, steps, (b1, b2), rate, epsilon / (1 - b2 ** (float(steps) + 1)) ** 0.5)

    return step


def _fused_rmsprop(weights: Tensor, gradient: Tensor, rate: float) -> Callable[[], None]:
    """RMSprop as an Adam whose first moment forgets everything and whose second is v + eps, without corrections.

    That second moment u follows ``u = rho (u + eps (1 - rho) / rho) + (1 - rho) g^2`` from ``u = eps`` on.
    """
    rho, epsilon = 0.9, 1e-7
    m, u = torch.zeros_like(weights), torch.full_like(weights, epsilon)
    steps = torch.tensor(1e6)  # so many that rho^steps is 0

    def step() -> None:
        u.add_(epsilon * (1 - rho) / rho)
        _adam(weights, gradient, m, u, steps, (0.0, rho), rate, 0.0)

    return step


def _adam(
    weights: Tensor,
    gradient: Tensor,
    m: Tensor,
    v: Tensor,
    steps: Tensor,
    betas: tuple[float, float],
    rate: float,
    epsilon: float,
) -> None:
    adam(
        [weights],
        [gradient],
        [m],
        [v],
        [],
        [steps],
        fused=True,
        amsgrad=False,
        beta1=betas[0],
        beta2=betas[1],
        lr=rate,
        weight_decay=0.0,
        eps=epsilon,
        maximize=False,
    )
