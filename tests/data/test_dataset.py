"""Images decoded and resized once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.fake import write_class_folders

from sonobreast.config import Preprocess
from sonobreast.data.dataset import decode_all
from sonobreast.data.preprocess import decode, resize
from sonobreast.errors import SonobreastError


def test_one_by_one_is_the_same(tmp_path: Path) -> None:
    paths = sorted(write_class_folders(tmp_path).glob("*/*.png"))
    steps = []
    settings = Preprocess(size=32)
    images = decode_all(paths, settings, lambda done, total: steps.append((done, total)))
    assert images.shape == (len(paths), 32, 32, 3)
    for path, image in zip(paths, images, strict=True):
        np.testing.assert_array_equal(image, resize(decode(path), settings))
    assert steps == [(i + 1, len(paths)) for i in range(len(paths))]


def test_image_that_is_gone_is_named(tmp_path: Path) -> None:
    paths = sorted(write_class_folders(tmp_path).glob("*/*.png"))
    paths[3].unlink()
    with pytest.raises(SonobreastError) as caught:
        decode_all(paths, Preprocess(size=32))
    assert caught.value.file == str(paths[3])


def test_no_images() -> None:
    assert decode_all([], Preprocess(size=32)).shape == (0, 32, 32, 3)
