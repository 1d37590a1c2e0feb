"""Outsiders: the same from the same seed, different among themselves, and none of them breaks what prepares scans."""

from __future__ import annotations

import numpy as np
import pytest

from sonobreast.config import Preprocess
from sonobreast.data.preprocess import prepare
from sonobreast.errors import SonobreastError
from sonobreast.evaluation.domain import picture_statistics
from sonobreast.inspection import outsiders
from sonobreast.inspection.outsiders import KINDS, drawn, from_scans

DRAWN = KINDS[:-2]


@pytest.mark.parametrize("kind", DRAWN)
def test_a_seed_gives_a_picture(kind: str) -> None:
    two, three = list(drawn(kind, 2, seed=4)), list(drawn(kind, 3, seed=4))
    for a, b in zip(two, three, strict=False):
        assert a.picture.dtype == np.uint8
        assert a.picture.ndim == 3
        assert a.picture.shape[2] == 3
        assert (a.picture == b.picture).all()
        assert a.group == b.group
    assert three[0].picture.shape != three[1].picture.shape or (three[0].picture != three[1].picture).any()
    if kind != "blank":
        other = next(drawn(kind, 1, seed=5)).picture
        assert other.shape != two[0].picture.shape or (other != two[0].picture).any()


@pytest.mark.parametrize("kind", ["blank", "simulated scene"])
def test_marks_are_looked_for_in_anything(kind: str) -> None:
    settings = Preprocess(size=64, inpaint_marks=True)
    for outsider in drawn(kind, 2):
        assert prepare(outsider.picture, settings).shape == (64, 64, 3)


def test_black_and_white_come_first_among_the_blank() -> None:
    black, white, grey = (o.picture for o in drawn("blank", 3))
    assert not black.any()
    assert (white == 255).all()
    assert grey.min() == grey.max()


def test_doppler_has_colour_and_a_mammogram_none() -> None:
    colour = picture_statistics(np.stack([o.picture[:320, :320] for o in drawn("colour Doppler", 2)]))[:, 0]
    grey = picture_statistics(np.stack([o.picture[:320, :320] for o in drawn("mammogram-like", 2)]))[:, 0]
    assert colour.min() > grey.max() + 1.0


def test_parts_of_one_photograph_are_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    files = outsiders.photographs_at_hand()
    if files:
        groups = [o.group for o in drawn("photograph", len(files) + 1)]
        assert groups[0] == groups[-1]
        assert len(set(groups)) == len(files)
    monkeypatch.setattr(outsiders, "photographs_at_hand", tuple)
    assert len({o.group for o in drawn("photograph", 3)}) == 3


def test_scans_changed_twice_are_the_scans() -> None:
    scan = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    for kind in KINDS[-2:]:
        [once] = from_scans(kind, [scan], ["a"])
        [twice] = from_scans(kind, [once.picture], ["a"])
        assert (once.picture != scan).any()
        assert (twice.picture == scan).all()
        assert once.group == "a"


def test_an_unknown_kind_is_said() -> None:
    with pytest.raises(SonobreastError, match="X-ray"):
        list(drawn("X-ray", 1))
    with pytest.raises(SonobreastError, match="blank"):
        list(from_scans("blank", [], []))
