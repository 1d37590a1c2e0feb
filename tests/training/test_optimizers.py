"""Each optimizer's first updates are those of Keras 3, and of its formula in double precision.

The golden values were made once with Keras 3.15.1 and JAX 0.10.2 on the CPU, in an environment of its own
(``pip install keras "jax[cpu]" numpy``), with this script:

    import os
    os.environ["KERAS_BACKEND"] = "jax"
    import keras, numpy as np
    # f(x) = sum(a (x - b)^2) / 2: gradients from 1e-7 (that is epsilon) to 1e3
    a = np.float32([1e3, 1.0, 1e-2, 1e-4, 1e-6])
    b = np.float32([1.0, -0.5, 0.25, 2.0, 0.1])
    start = np.float32([0.0, 0.3, 0.35, -1.0, 0.2])
    for name, optimizer in {
        "adam": keras.optimizers.Adam(1e-3), "rmsprop": keras.optimizers.RMSprop(1e-3),
        "sgdm": keras.optimizers.SGD(1e-3, momentum=0.9),
    }.items():
        x = keras.Variable(start)
        for _ in range(5):
            gradient = a * (np.asarray(x) - b)
            optimizer.apply([keras.ops.convert_to_tensor(gradient)], [x])
            print(name, [float(v) for v in np.asarray(x)])

("nadam": keras.optimizers.Nadam(1e-3), made later with KERAS_BACKEND "tensorflow", which gives the same values for
"adam"), and for the weighted loss

    logits = np.float32([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 4.0], [0.0, 5.0, 0.0]])
    label, w = np.int32([0, 2, 1, 1]), np.float32([0.5, 2.0, 1.25])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    print(repr(float(loss(label, logits, sample_weight=w[label]))))
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.fake import tiny_recipe

from sonobreast.config import Training
from sonobreast.errors import SonobreastError
from sonobreast.training.fitted import class_weights, weighted_loss
from sonobreast.training.optimizers import OPTIMIZERS, build_optimizer

A = np.float32([1e3, 1.0, 1e-2, 1e-4, 1e-6])
B = np.float32([1.0, -0.5, 0.25, 2.0, 0.1])
START = np.float32([0.0, 0.3, 0.35, -1.0, 0.2])

# fmt: off
GOLDEN = {
    "adam": [
        [0.0009999932954087853, 0.2990000247955322, 0.3490031659603119, -0.999010443687439, 0.1999693512916565],
        [0.0019999570213258266, 0.2980000674724579, 0.3480056822299957, -0.9980178475379944, 0.19992655515670776],
        [0.002999883610755205, 0.2970001697540283, 0.34700825810432434, -0.9970239400863647, 0.1998746693134308],
        [0.003999743144959211, 0.29600033164024353, 0.3460112512111664, -0.996029257774353, 0.19981525838375092],
        [0.004999524913728237, 0.2950006127357483, 0.34501492977142334, -0.9950340390205383, 0.19974933564662933],
    ],
    "rmsprop": [
        [0.003162277862429619, 0.2968377470970154, 0.34776392579078674, -0.9990913271903992, 0.19999969005584717],
        [0.005452990066260099, 0.2945478856563568, 0.3459344804286957, -0.9982149004936218, 0.1999993771314621],
        [0.007369325961917639, 0.29263269901275635, 0.3443334698677063, -0.9973647594451904, 0.19999906420707703],
        [0.009069321677088737, 0.2909340262413025, 0.34288156032562256, -0.996536374092102, 0.19999875128269196],
        [0.010626339353621006, 0.28937843441963196, 0.3415355682373047, -0.9957262277603149, 0.19999843835830688],
    ],
    "sgdm": [
        [1.0, 0.29919999837875366, 0.34999898076057434, -0.9999997019767761, 0.20000000298023224],
        [1.899999976158142, 0.2976807951927185, 0.34999707341194153, -0.9999991059303284, 0.20000000298023224],
        [1.809999942779541, 0.29551583528518677, 0.34999436140060425, -0.9999982714653015, 0.20000000298023224],
        [0.9189998507499695, 0.2927718460559845, 0.34999093413352966, -0.9999972581863403, 0.20000000298023224],
        [0.19809991121292114, 0.28950950503349304, 0.34998685121536255, -0.9999960064888, 0.20000000298023224],
    ],
    "nadam": [
        [0.0010627878364175558, 0.29893723130226135, 0.3489373028278351, -0.9989375472068787, 0.19946861267089844],
        [0.0018360188696533442, 0.29816409945487976, 0.34816738963127136, -0.9981643557548523, 0.19908322393894196],
        [0.002546857576817274, 0.297453373670578, 0.34746116399765015, -0.9974534511566162, 0.19872966408729553],
        [0.0032479586079716682, 0.2967524230480194, 0.3467658758163452, -0.996752142906189, 0.19838157296180725],
        [0.003957521636039019, 0.2960430383682251, 0.34606340527534485, -0.9960423111915588, 0.19802987575531006],
    ],
}
# fmt: on


def updates(name: str, settings: Training, steps: int = 5) -> list[np.ndarray]:
    x = torch.nn.Parameter(torch.tensor(START))
    optimizer = build_optimizer(name, [x], settings)
    found = []
    for _ in range(steps):
        optimizer.zero_grad()
        x.grad = torch.tensor(A) * (x.detach() - torch.tensor(B))
        optimizer.step()
        found.append(x.detach().numpy().copy())
    return found


def formula(name: str, rate: float, steps: int = 5) -> list[np.ndarray]:
    """The textbook updates in double precision."""
    x, m, v = START.astype(float), np.zeros(5), np.zeros(5)
    found = []
    for t in range(1, steps + 1):
        g = A.astype(float) * (x - B)
        if name == "adam":
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            x = x - rate * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * m / (np.sqrt(v) + 1e-7)
        elif name == "rmsprop":
            v = 0.9 * v + 0.1 * g**2
            x = x - rate * g / np.sqrt(v + 1e-7)
        elif name == "nadam":
            u = [0.9 * (1 - 0.5 * 0.96**k) for k in range(1, t + 2)]  # of the steps 1 to t + 1
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            ahead = u[t] * m / (1 - np.prod(u)) + (1 - u[t - 1]) * g / (1 - np.prod(u[:-1]))
            x = x - rate * ahead / (np.sqrt(v / (1 - 0.999**t)) + 1e-7)
        else:
            m = (0.9 if name == "sgdm" else 0.0) * m - rate * g
            x = x + m
        found.append(x)
    return found


@pytest.mark.parametrize("name", GOLDEN)
def test_first_updates_are_those_of_keras(name: str) -> None:
    found = updates(name, Training(learning_rate=1e-3))
    np.testing.assert_allclose(found, GOLDEN[name], atol=2e-7, rtol=1e-6)
    moved, wanted = np.diff([START, *found], axis=0), np.diff([START, *np.float32(GOLDEN[name])], axis=0)
    # The steps themselves, too: one that is lost beside a large value would pass the line above.
    np.testing.assert_allclose(moved, wanted, atol=2.5e-7, rtol=1e-3)


@pytest.mark.parametrize("name", ["adam", "rmsprop", "sgdm", "sgd", "nadam"])
def test_updates_are_those_of_the_formula(name: str) -> None:
    for rate in (1e-4, 1e-2):
        found = updates(name, Training(learning_rate=rate), 20)
        np.testing.assert_allclose(found, formula(name, rate, 20), atol=2e-6, rtol=2e-4)


def test_torch_s_own_would_be_seen() -> None:
    """Epsilon stands elsewhere in PyTorch: the golden values tell the two apart."""
    for name, other in (("adam", torch.optim.Adam), ("rmsprop", torch.optim.RMSprop)):
        x = torch.nn.Parameter(torch.tensor(START))
        optimizer = other([x], lr=1e-3, eps=1e-7, **({"alpha": 0.9} if name == "rmsprop" else {}))
        x.grad = torch.tensor(A) * (x.detach() - torch.tensor(B))
        optimizer.step()
        assert np.abs(x.detach().numpy() - GOLDEN[name][0]).max() > 1e-5


def test_nadam_is_that_of_torch_with_the_momentum_of_keras() -> None:
    """The schedule of the momentum is what the two disagree about."""
    found = {}
    for decay in (1.0, 4e-3):  # Keras', PyTorch's default
        x = torch.nn.Parameter(torch.tensor(START))
        optimizer = torch.optim.NAdam([x], lr=1e-3, eps=1e-7, momentum_decay=decay)
        for _ in range(5):
            x.grad = torch.tensor(A) * (x.detach() - torch.tensor(B))
            optimizer.step()
        found[decay] = x.detach().numpy()
    ours = updates("nadam", Training(learning_rate=1e-3))[-1]
    np.testing.assert_array_equal(ours, found[1.0])
    assert np.abs(ours - found[4e-3]).max() > 1e-5


def test_rate_of_a_single_optimizer_and_momentum() -> None:
    settings = Training(learning_rate=1e-3, learning_rates={"sgdm": 1e-2}, momentum=0.5)
    x = START.astype(float)
    step = -1e-2 * A.astype(float) * (x - B)
    np.testing.assert_allclose(updates("sgdm", settings, 1)[0], x + step, rtol=1e-6, atol=1e-7)
    second = 0.5 * step - 1e-2 * A.astype(float) * (x + step - B)
    np.testing.assert_allclose(updates("sgdm", settings, 2)[1], x + step + second, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(updates("adam", settings, 1), updates("adam", Training(learning_rate=1e-3), 1))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_without_gradient_stay(name: str) -> None:
    x, y = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = build_optimizer(name, [x, y], Training(learning_rate=0.1))
    x.grad = torch.ones(3)
    optimizer.step()
    assert (y == 1).all()
    assert (x < 1).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_closure(name: str) -> None:
    x = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer(name, [x], Training(learning_rate=0.1))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = (x**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (x < 1).all()


def test_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(SonobreastError, match="did you mean rmsprop"):
        build_optimizer("rmsprob", [torch.nn.Parameter(torch.ones(1))], Training())


# Class weights and the loss


def test_class_weights() -> None:
    label = torch.tensor([0] * 96 + [1] * 102 + [2] * 93)
    balanced = class_weights(label, 3, tiny_recipe())
    np.testing.assert_allclose(balanced, [291 / (3 * n) for n in (96, 102, 93)], rtol=1e-6)
    assert float(balanced[label].mean()) == pytest.approx(1.0)
    assert (class_weights(label, 3, tiny_recipe({"training.class_weights": "none"})) == 1).all()


def test_weighted_loss_is_that_of_keras() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.1, 0.2, 0.3], [-3.0, 1.0, 4.0], [0.0, 5.0, 0.0]])
    label, weight = torch.tensor([0, 2, 1, 1]), torch.tensor([0.5, 2.0, 1.25])
    found = float(weighted_loss(logits, label, weight))
    assert found == pytest.approx(1.8746918439865112, rel=1e-6)
    x = logits.double().numpy()
    each = np.log(np.exp(x).sum(1)) - x[np.arange(4), label]
    assert found == pytest.approx(float((each * weight[label].numpy()).mean()), rel=1e-6)


@pytest.mark.parametrize("value", [1e4, -1e4])
def test_loss_of_extreme_logits_is_finite(value: float) -> None:
    loss: Callable[..., torch.Tensor] = weighted_loss
    assert torch.isfinite(loss(torch.tensor([[value, 0.0]]), torch.tensor([1]), torch.ones(2)))
