"""The fast way gives the plain network's features; what cannot be traced is used as it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sonobreast.models.forward import frozen_forward, has_bfloat16
from sonobreast.models.zoo import Backbone, load_backbone


@pytest.fixture(scope="module", params=["test_resnet", "test_efficientnet"])
def backbone(request: pytest.FixtureRequest, tiny_weights: Path) -> Backbone:
    return load_backbone(request.param, str(tiny_weights), cut_uncovered=True, image_size=64)


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_float32_features_are_those_of_the_plain_network(backbone: Backbone) -> None:
    fast = frozen_forward(backbone, images(4))
    for n in (4, 1, 7):  # other batches than the one it was made with
        with torch.inference_mode():
            plain = backbone(images(n, seed=n))
            assert torch.allclose(fast(images(n, seed=n)), plain, atol=1e-5 * float(plain.abs().max()))


def test_bfloat16_features_are_near_and_come_as_float32(backbone: Backbone) -> None:
    fast = frozen_forward(backbone, images(4), torch.bfloat16)
    with torch.inference_mode():
        plain, found = backbone(images(8, 1)), fast(images(8, 1))
    assert found.dtype == torch.float32
    assert float(torch.cosine_similarity(found, plain, dim=1).min()) > 0.99
    assert not torch.equal(found, plain)


def test_the_backbone_stays_as_it_was(backbone: Backbone) -> None:
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    frozen_forward(backbone, images(2), torch.bfloat16)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


class Branching(nn.Module):
    """Does another thing for another input: a trace of it would be wrong."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise RuntimeError("cannot be traced")
        torch.jit.annotate(int, 1)
        return x.mean(dim=(2, 3)) if not torch.jit.is_tracing() else x.amax(dim=(2, 3))


def test_a_trace_that_gives_other_features_is_not_used() -> None:
    fast = frozen_forward(Branching(), images(2))  # type: ignore[arg-type]
    assert torch.allclose(fast(images(3)), images(3).mean(dim=(2, 3)))


def test_the_machine_answers() -> None:
    assert has_bfloat16() in (True, False)
