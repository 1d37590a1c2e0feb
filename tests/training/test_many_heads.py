"""Every one of many heads is the head that the plain loop trains."""

from __future__ import annotations

import gc
import threading
from typing import Any

import numpy as np
import pytest
import torch
from tests.fake import tiny_recipe

from sonobreast.config import Recipe
from sonobreast.errors import Diverged, SonobreastError
from sonobreast.training import many_heads
from sonobreast.training.fitted import Fitted
from sonobreast.training.frozen import Bank, fit_head
from sonobreast.training.images import Images
from sonobreast.training.many_heads import Job, fit_heads
from sonobreast.training.optimizers import OPTIMIZERS, build_optimizer, vector_update

N, F = 60, 24
CLASSES = ("benign", "malignant", "normal")


def made(standardise: bool = False, views: int = 3, seed: int = 0) -> tuple[Bank, Images]:
    """Features of images that do not exist; three overlapping clouds, one feature that never varies."""
    random = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 3, (N,), generator=random)
    clean = 0.7 * torch.randn(3, F, generator=random)[label] + torch.randn(N, F, generator=random)
    clean[:, 0] = 1.0
    augmented = clean + 0.3 * torch.randn(views, N, F, generator=random)
    images = Images(np.zeros((N, 1, 1, 3), np.uint8), tuple(map(str, range(N))), label, CLASSES)
    return Bank(clean, augmented, standardise), images


def recipe_of(changes: dict[str, Any] | None = None) -> Recipe:
    return tiny_recipe({"training.epochs": 8, "training.early_stopping": None, **(changes or {})})


def job(optimizer: str = "adam", seed: int = 0, train: int = 33, fold: int = 0) -> Job:
    order = np.random.default_rng(fold).permutation(N)
    return Job(order[:train], order[train : train + 11], optimizer, seed)


def plainly(bank: Bank, images: Images, one: Job, recipe: Recipe) -> Fitted | Diverged:
    try:
        return fit_head(bank, images, one.train, one.validation, recipe, one.optimizer, one.seed)
    except Diverged as error:
        return error


def assert_same(found: Fitted | Diverged, wanted: Fitted | Diverged) -> None:
    if isinstance(wanted, Diverged):
        assert isinstance(found, Diverged)
        assert (found.what, found.remedy) == (wanted.what, wanted.remedy)
        return
    assert isinstance(found, Fitted)
    assert list(found.state) == list(wanted.state)
    for key, value in wanted.state.items():
        assert found.state[key].is_contiguous()
        torch.testing.assert_close(found.state[key], value, atol=1e-6, rtol=1e-6, msg=key)
    assert found.best_epoch == wanted.best_epoch
    rows, wanted_rows = ([list(e.model_dump(exclude_none=True).values()) for e in f.history] for f in (found, wanted))
    np.testing.assert_allclose(rows, wanted_rows, atol=1e-6, rtol=1e-6)
    assert found.probability.dtype == np.float32
    np.testing.assert_allclose(found.probability, wanted.probability, atol=2e-6)


def compare(jobs: list[Job], recipe: Recipe, standardise: bool = False) -> list[Fitted | Diverged]:
    bank, images = made(standardise)
    found = dict(fit_heads(bank, images, jobs, recipe))
    assert sorted(found) == list(range(len(jobs)))
    for i, one in enumerate(jobs):
        assert_same(found[i], plainly(bank, images, one, recipe))
    return [found[i] for i in range(len(jobs))]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_seeds_and_unequal_folds(optimizer: str) -> None:
    rates = {"adam": 2e-3, "rmsprop": 5e-4, "sgdm": 0.02, "sgd": 0.05}
    folds = [(32, 0), (33, 1), (40, 2), (7, 3)]  # full batches, one image left over, another size, less than a batch
    jobs = [job(optimizer, seed, train, fold) for seed in (0, 5) for train, fold in folds]
    compare(jobs, recipe_of({"training.learning_rates": rates}))


@pytest.mark.parametrize("hidden", [[], [16], [8, 4], [8, 6, 4]])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("standardise", [False, True])
def test_heads_of_every_shape(hidden: list[int], dropout: float, standardise: bool) -> None:
    recipe = recipe_of({"head.hidden": hidden, "head.dropout": dropout, "training.epochs": 5})
    compare([job("adam"), job("rmsprop", 1), job("sgdm", 2)], recipe, standardise)


@pytest.mark.parametrize(
    "changes", [{"head.init": "torch"}, {"training.class_weights": "none"}, {"training.batch_size": 100}]
)
def test_further_settings(changes: dict[str, Any]) -> None:
    compare([job("adam"), job("sgdm", 1)], recipe_of(changes))


@pytest.mark.parametrize("monitor", ["validation_loss", "validation_accuracy"])
def test_heads_stop_at_different_epochs(monitor: str) -> None:
    recipe = recipe_of(
        {
            "training.epochs": 40,
            "training.learning_rates": {"adam": 0.03, "sgdm": 0.1, "sgd": 1e-3},
            "training.early_stopping": {"monitor": monitor, "patience": 3},
        }
    )
    found = compare([job(o, fold=f) for o in ("adam", "sgdm", "sgd") for f in range(2)], recipe)
    lengths = {len(f.history) for f in found if isinstance(f, Fitted)}
    assert len(lengths) > 2
    assert min(lengths) < 40


def test_a_head_that_diverges_does_not_disturb_the_others() -> None:
    recipe = recipe_of({"training.learning_rates": {"sgdm": 1e30}, "training.learning_rate": 1e-3})
    found = compare([job("adam"), job("sgdm"), job("sgd"), job("sgdm", 1), job("rmsprop", 1)], recipe)
    assert [isinstance(f, Diverged) for f in found] == [False, True, False, True, False]


def test_same_bits_whatever_is_trained_beside_it() -> None:
    """An interrupted study trains the remaining heads in other company and must end with the same numbers."""
    bank, images = made()
    recipe = recipe_of()
    jobs = [job(o, s, train=t) for o in ("adam", "sgdm") for s in (0, 1) for t in (33, 40)]
    together = dict(fit_heads(bank, images, jobs, recipe))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        two = dict(fit_heads(bank, images, jobs, recipe))
    finally:
        torch.set_num_threads(threads)
    for i, one in enumerate(jobs):
        [(index, alone)] = fit_heads(bank, images, [one], recipe)
        assert index == 0
        for other in (together[i], two[i]):
            assert isinstance(alone, Fitted)
            assert isinstance(other, Fitted)
            assert all(torch.equal(alone.state[k], other.state[k]) for k in alone.state)
            assert alone.history == other.history
            assert np.array_equal(alone.probability, other.probability)


def test_no_job() -> None:
    assert list(fit_heads(*made(), [], recipe_of())) == []


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_random_state_threads_and_bank_are_left_alone(threads: int) -> None:
    bank, images = made(standardise=True)
    clean, views = bank.clean.clone(), bank.views.clone()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        torch.manual_seed(1)
        state = torch.random.get_rng_state()
        for _ in fit_heads(bank, images, [job(seed=s) for s in range(4)], recipe_of({"training.epochs": 2})):
            assert torch.equal(torch.random.get_rng_state(), state)
            assert torch.get_num_threads() == threads
        inherited: list[int] = []
        other = threading.Thread(target=lambda: inherited.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert inherited == [threads]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(bank.clean, clean)
    assert torch.equal(bank.views, views)


def test_progress_adds_up_and_comes_in_the_caller_s_thread() -> None:
    recipe = recipe_of(
        {
            "training.epochs": 30,
            "training.learning_rates": {"sgdm": 1e30, "adam": 0.1},
            "training.early_stopping": {"patience": 2},
        }
    )
    steps: list[int] = []
    threads: set[int] = set()

    def progress(epochs: int) -> None:
        steps.append(epochs)
        threads.add(threading.get_ident())

    found = dict(fit_heads(*made(), [job("adam"), job("sgdm"), job("sgd")], recipe, progress))
    assert isinstance(found[1], Diverged)
    assert sum(steps) == 3 * 30
    assert threads == {threading.get_ident()}


def test_an_iterator_that_is_left_ends_its_threads() -> None:
    bank, images = made()
    recipe = recipe_of({"training.epochs": 100_000, "training.learning_rates": {"adam": 1e30}})
    threads = threading.active_count()
    # The first diverges at once; the other two would train for minutes.
    heads = fit_heads(bank, images, [job("adam"), job("sgd"), job("sgd", 1)], recipe)
    assert isinstance(next(heads)[1], Diverged)
    heads.close()
    assert threading.active_count() == threads


def test_few_heads_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of heads are written and dropped one by one."""
    alive, most = [0], [0]
    original = many_heads._fit

    def counted(*arguments: Any) -> Any:
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return original(*arguments)

    monkeypatch.setattr(many_heads, "_fit", counted)
    for _ in fit_heads(*made(), [job(seed=s) for s in range(20)], recipe_of({"training.epochs": 1})):
        alive[0] -= 1
        gc.collect(0)
    assert most[0] <= 3 * torch.get_num_threads()


def test_error_in_a_head_reaches_the_caller() -> None:
    with pytest.raises(SonobreastError, match="did you mean rmsprop"):
        list(fit_heads(*made(), [job("adam"), job("rmsprob")], recipe_of()))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_vector_update_is_the_optimizer(name: str) -> None:
    """Gradients from 1e-9 to 1: on both sides of every epsilon."""
    random = torch.Generator().manual_seed(0)
    settings = recipe_of({"training.learning_rate": 1e-3}).training
    weights, gradient = torch.randn(40, generator=random), torch.zeros(40)
    parameter = torch.nn.Parameter(weights.clone())
    plain, update = build_optimizer(name, [parameter], settings), vector_update(name, weights, gradient, settings)
    for _ in range(20):
        parameter.grad = torch.randn(40, generator=random) * torch.logspace(-9, 0, 40)
        gradient.mul_(update.keep).add_(parameter.grad)
        plain.step()
        update.step()
        torch.testing.assert_close(weights, parameter.detach(), atol=1e-7, rtol=1e-6)
