"""Where the real data and weights are, and how many threads a test may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests import fake

from sonobreast.data.manifest import Manifest, build

_REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> None:
    """Two workers on two cores: torch with all cores in each would be slower by far."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Looks at test sets are counted here and not in the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SONOBREAST_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def _data_folder() -> Path:
    named = os.environ.get("SONOBREAST_DATA")
    return Path(named) if named else _REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of the real data sets (``busi/`` and others)."""
    folder = _data_folder()
    if not (folder / "busi").is_dir():
        pytest.skip(f"no real data in {folder}: set SONOBREAST_DATA to the folder that holds busi/")
    return folder


@pytest.fixture(scope="session")
def real_busi(real_data: Path) -> Manifest:
    """BUSI as `build` lists it; every file is opened, so it is done once."""
    return build(real_data / "busi", strict=True)


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder of the real ImageNet weights."""
    named = os.environ.get("SONOBREAST_WEIGHTS")
    folder = Path(named) if named else _data_folder().parent / "weights"
    if not any(folder.glob("*.safetensors")):
        pytest.skip(f"no weights in {folder}: set SONOBREAST_WEIGHTS to the folder of .safetensors files")
    return folder


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of timm's ``test_*`` networks, random but seeded; ``partial/`` lacks the last stage of each."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("test_resnet", "test_efficientnet", "test_vit"):
        fake.write_weights(folder, name)
    last = {"test_resnet": "layer4.", "test_efficientnet": ("blocks.4.", "conv_head", "bn2"), "test_vit": "blocks.5."}
    for name, prefixes in last.items():
        missing = (prefixes,) if isinstance(prefixes, str) else prefixes
        also = ("norm.",) if name == "test_vit" else ()
        fake.write_weights(folder / "partial", name, keep=fake.before(*missing, *also))
    return folder


@pytest.fixture
def busi(tmp_path: Path) -> Path:
    """A small data set in the layout of BUSI."""
    return fake.write_busi(tmp_path / "busi")
