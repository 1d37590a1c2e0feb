"""Views that are read from the disk give the heads that views in memory give."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.fake import make_images, tiny_recipe

from sonobreast.data.mapped import Mapped
from sonobreast.errors import SonobreastError
from sonobreast.models.zoo import Backbone, load_backbone
from sonobreast.training import many_heads, view_file
from sonobreast.training.frozen import compute_bank, fit_head
from sonobreast.training.images import Images
from sonobreast.training.many_heads import Job, fit_heads
from sonobreast.training.view_file import plan_views, read_view, write_view

N = 24
TRAIN, VALIDATION = np.r_[0:8, 11:16], np.arange(16, 20)
GB = 10**9


@pytest.fixture(scope="module")
def images() -> Images:
    return make_images(N)


@pytest.fixture(params=["whole", "cut"])
def backbone(request: pytest.FixtureRequest, tiny_weights: Path) -> Backbone:
    folder = tiny_weights if request.param == "whole" else tiny_weights / "partial"
    return load_backbone("test_resnet", str(folder), image_size=64)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view_file, "available_memory", lambda: 1000)


def test_bank_on_the_disk_is_the_bank_in_memory(
    backbone: Backbone, images: Images, tmp_path: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe({"training.epochs": 4, "training.batch_size": 3})
    there = compute_bank(backbone, images, recipe, tmp_path, trained_on=TRAIN)
    assert len(there.files) == 3
    monkeypatch.setattr(view_file, "available_memory", lambda: 10 * GB)
    here = compute_bank(backbone, images, recipe, trained_on=TRAIN)
    assert here.files == ()
    assert torch.equal(there.clean, here.clean)
    assert len(there.views) == len(here.views) == 2
    for k in range(2):
        assert torch.equal(there.views[k], here.views[k])
        index = torch.tensor([3, 12, 3])
        assert torch.equal(there.take(k, index), here.views[k][index])
        assert torch.equal(there.take(None, index), here.clean[index])

    monkeypatch.setattr(many_heads, "_GATHERED", 4 * backbone.features * 6)  # two batches at once, the last one short
    jobs = [Job(TRAIN, VALIDATION, o, seed) for o in ("adam", "sgdm") for seed in (0, 1)]
    found = [dict(fit_heads(bank, images, jobs, recipe)) for bank in (there, here)]
    for i, job in enumerate(jobs):
        one, other = (f[i] for f in found)
        assert one.history == other.history
        assert np.array_equal(one.probability, other.probability)
        assert all(torch.equal(one.state[k], other.state[k]) for k in one.state)
        plain = fit_head(here, images, TRAIN, VALIDATION, recipe, job.optimizer, job.seed)
        np.testing.assert_allclose(one.probability, plain.probability, atol=1e-5)
        assert one.best_epoch == plain.best_epoch


def test_interrupted_bank_goes_on_in_memory_or_on_the_disk(
    backbone: Backbone, images: Images, tmp_path: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe()
    there = compute_bank(backbone, images, recipe, tmp_path, trained_on=TRAIN)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    monkeypatch.setattr(view_file, "available_memory", lambda: 10 * GB)
    here = compute_bank(backbone, images, recipe, tmp_path, trained_on=TRAIN)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    assert all(torch.equal(here.views[k], there.views[k]) for k in range(2))


# The file


def parts(rows: np.ndarray, features: np.ndarray, size: int = 3) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(rows[a : a + size], features[a : a + size]) for a in range(0, len(rows), size)]


@pytest.mark.parametrize("rows", [np.arange(10), np.array([0, 1, 2, 5, 9]), np.array([9, 3, 4, 0]), np.empty(0, int)])
def test_file_is_one_that_safetensors_reads(tmp_path: Path, rows: np.ndarray) -> None:
    features = np.random.default_rng(0).normal(size=(len(rows), 7)).astype(np.float32)
    write_view(tmp_path / "view.safetensors", (10, 7), iter(parts(rows, features)))
    wanted = np.zeros((10, 7), np.float32)
    wanted[rows] = features
    read = read_view(tmp_path / "view.safetensors", (10, 7))
    assert isinstance(read, Mapped)
    np.testing.assert_array_equal(read.array, wanted)
    np.testing.assert_array_equal(load_file(tmp_path / "view.safetensors")["features"].numpy(), wanted)
    assert read_view(tmp_path / "view.safetensors", (10, 8)) is None
    assert read_view(tmp_path / "view.safetensors", (9, 7)) is None


def test_rows_that_are_not_trained_on_take_no_room(tmp_path: Path) -> None:
    write_view(tmp_path / "view", (2000, 1000), iter([(np.array([1500]), np.ones((1, 1000), np.float32))]))
    assert (tmp_path / "view").stat().st_size > 8_000_000
    if (tmp_path / "view").stat().st_blocks * 512 > 4_000_000:
        pytest.skip("this file system has no files with holes")


def test_error_on_the_way_leaves_no_file(tmp_path: Path) -> None:
    def broken() -> object:
        yield np.array([0]), np.zeros((1, 3), np.float32)
        raise SonobreastError("broken")

    with pytest.raises(SonobreastError, match="broken"):
        write_view(tmp_path / "view", (2, 3), broken())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


# Room


def room(monkeypatch: pytest.MonkeyPatch, memory: float, disk: float) -> None:
    monkeypatch.setattr(view_file, "available_memory", lambda: int(memory * GB))
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(disk * GB)))


@pytest.mark.parametrize(
    ("n", "memory", "disk", "cache", "plan"),
    [
        (780, 8, 0, True, (False, True, 10)),  # 44 MB
        (100_000, 64, 50, True, (True, True, 10)),  # 5.6 GB
        (100_000, 64, 0, True, (False, False, 10)),
        (100_000, 64, 0, False, (False, False, 10)),
        (100_000, 2, 4, True, (True, True, 4)),  # (4 - 1.07 - 0.51) / 0.51
        (100_000, 4, 2, True, (False, False, 2)),  # 4 / 2 / 0.51 - 1
        (100_000, 0.1, 0.1, True, (False, False, 1)),
    ],
)
def test_plan(
    n: int,
    memory: float,
    disk: float,
    cache: bool,
    plan: tuple[bool, bool, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room(monkeypatch, memory, disk)
    found = plan_views(n, n, 1280, 10, tmp_path / "cache" if cache else None)
    assert (found.mapped, found.cached, found.views) == plan
    assert bool(found.why) == (found.views < 10)
    if found.why:
        assert f"{found.views} of 10 views" in found.why


def test_finished_files_count_as_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room(monkeypatch, 0, 1.1)
    (tmp_path / "view-000.safetensors").write_bytes(b"1" * 4_000_000)
    assert plan_views(1000, 1000, 250, 30, tmp_path).views == 29
    (tmp_path / "view-001.safetensors").write_bytes(b"1" * 2_000_000)
    assert plan_views(1000, 1000, 250, 30, tmp_path).views == 30


def test_fewer_views_are_said_and_counted(
    backbone: Backbone, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe({"augment.views": 3})
    room(monkeypatch, 0, 0)
    said: list[str] = []
    steps: list[int] = []
    bank = compute_bank(backbone, images, recipe, tmp_path, steps.append, TRAIN, said.append)
    assert len(bank.views) == 1
    assert "1 of 3 views are used" in said[0]
    assert sum(steps) == N + 3 * len(TRAIN)


def test_disk_that_fills_up_on_the_way(
    backbone: Backbone, images: Images, tmp_path: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = os.fsync

    def fsync(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 2:  # the images as they are, and one view
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    said: list[str] = []
    bank = compute_bank(backbone, images, tiny_recipe(), tmp_path, say=said.append)
    assert len(bank.views) == 1
    assert said == ["the disk is full: 1 of 2 augmented views are used"]
    with pytest.raises(SonobreastError, match="No space left"):  # not even the images as they are
        compute_bank(backbone, images, tiny_recipe(), tmp_path / "other")
