"""The average is that of the written-out loop, and what is judged, kept and predicted with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.fake import make_images, tiny_recipe

from sonobreast.errors import SonobreastError
from sonobreast.models.zoo import Backbone, load_backbone
from sonobreast.training.averaging import Average, decay_at
from sonobreast.training.fitted import Fitted
from sonobreast.training.head_settings import check_head_settings
from sonobreast.training.images import Images, network_input
from sonobreast.training.module import FineTuning, fit_network

TRAIN, VALIDATION = np.arange(12), np.arange(12, 18)
TUNE = {"model.backbone": "finetune", "augment": {}, "training.early_stopping": None, "head.dropout": 0.0}


@pytest.fixture(scope="module")
def images() -> Images:
    return make_images(18)


@pytest.fixture(scope="module")
def backbone(tiny_weights: Path) -> Backbone:
    return load_backbone("test_resnet", str(tiny_weights), cut_uncovered=False, image_size=64)


def tune(backbone: Backbone, images: Images, **changes: object) -> Fitted:
    recipe = tiny_recipe({**TUNE, **{k.replace("__", "."): v for k, v in changes.items()}})
    return fit_network(backbone, images, TRAIN, VALIDATION, recipe, "adam", 0)


def test_an_average_is_the_written_out_loop() -> None:
    random = torch.Generator().manual_seed(0)
    steps = torch.randn(40, 5, generator=random, dtype=torch.float64)
    live = torch.zeros(5, dtype=torch.float64)
    average = Average([live], 0.7)
    expected = None
    for n, step in enumerate(steps):
        live.copy_(step)
        average.update()
        decay = min(0.7, (1 + n) / (10 + n))
        expected = step.clone() if expected is None else decay * expected + (1 - decay) * step
        torch.testing.assert_close(average.kept[0], expected)
    assert decay_at(40, 0.7) == 0.7
    assert decay_at(5, 0.7) == 6 / 15
    with average.shown():
        torch.testing.assert_close(live, expected)
    assert torch.equal(live, steps[-1])


def test_counters_are_copied() -> None:
    count = torch.tensor(3)
    average = Average([count, torch.zeros(1)], 0.9)
    count += 4
    average.update()
    assert int(average.kept[0]) == 7


@pytest.mark.parametrize("batch_norm", ["inference", "train"])
def test_decay_0_is_plain_training(backbone: Backbone, images: Images, batch_norm: str) -> None:
    plain = tune(backbone, images, model__batch_norm=batch_norm)
    averaged = tune(backbone, images, model__batch_norm=batch_norm, training__averaging="ema", training__ema_decay=0.0)
    assert averaged.history == plain.history
    assert averaged.state.keys() == plain.state.keys()
    assert all(torch.equal(averaged.state[k], plain.state[k]) for k in plain.state)
    np.testing.assert_array_equal(averaged.probability, plain.probability)


@pytest.mark.parametrize("batch_norm", ["inference", "train"])
def test_training_with_an_average(
    backbone: Backbone, images: Images, batch_norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averaged by hand from the weights after each step: the last epoch's state, its figures and its predictions."""
    after: list[dict[str, torch.Tensor]] = []
    modules: list[FineTuning] = []
    original = FineTuning.on_train_batch_end

    def remember(self: FineTuning, *args: object) -> None:  # Lightning calls callbacks first; a step is over in both
        after.append(self.trained_state())
        modules.append(self)
        original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(FineTuning, "on_train_batch_end", remember)
    changes = {"training__averaging": "ema", "training__ema_decay": 0.6, "training__learning_rate": 0.003}
    fitted = tune(backbone, images, model__batch_norm=batch_norm, **changes)
    expected = {k: v.double() for k, v in after[0].items()}
    at_epoch = []
    for n, state in enumerate(after):
        if n > 0:
            decay = min(0.6, (1 + n) / (10 + n))
            expected = {k: decay * v + (1 - decay) * state[k].double() for k, v in expected.items()}
        if n % 2 == 1:  # two batches an epoch
            at_epoch.append(expected)
    assert len(at_epoch) == 3
    for key, value in fitted.state.items():
        if value.is_floating_point():
            wanted = at_epoch[fitted.best_epoch - 1][key].float()
            torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6, msg=key)
    moved = [k for k, v in fitted.state.items() if not torch.equal(v, after[2 * fitted.best_epoch - 1][k])]
    assert ("backbone.bn1.running_mean" in moved) == (batch_norm == "train")
    assert len(moved) > 20
    p = fitted.probability[VALIDATION, images.label[VALIDATION].numpy()]
    assert -np.log(p).mean() == pytest.approx(fitted.history[fitted.best_epoch - 1].validation_loss, rel=1e-4)
    assert modules, "and the figures above are of the averaged network:"
    again = modules[-1].eval()
    with torch.inference_mode():
        inputs = network_input(images, np.arange(18), tiny_recipe(TUNE), backbone, None)
        np.testing.assert_allclose(again(inputs)[0].softmax(1).numpy(), fitted.probability, atol=1e-5)


def test_training_itself_goes_on_from_the_last_step(backbone: Backbone, images: Images) -> None:
    plain = tune(backbone, images)
    averaged = tune(backbone, images, training__averaging="ema", training__ema_decay=0.9)
    assert [e.train_loss for e in averaged.history] == [e.train_loss for e in plain.history]
    assert [e.validation_loss for e in averaged.history] != [e.validation_loss for e in plain.history]


def test_heads_on_stored_features_refuse_it() -> None:
    with pytest.raises(SonobreastError, match=r"training\.averaging"):
        check_head_settings(tiny_recipe({"training.averaging": "ema"}))
