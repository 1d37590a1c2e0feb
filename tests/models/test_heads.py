"""The classifier: its layers, its first weights, and the standardisation that replaces a lost norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sonobreast.config import Head
from sonobreast.models.heads import Standardise, build_head


def linears(head: nn.Module) -> list[nn.Linear]:
    return [m for m in head.modules() if isinstance(m, nn.Linear)]


def test_the_paper_s_head() -> None:
    head = build_head(2048, 3, Head(hidden=(128,), dropout=0.3))
    assert [type(m) for m in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert sum(p.numel() for p in head.parameters()) == 2048 * 128 + 128 + 128 * 3 + 3
    assert head[2].p == 0.3
    assert head(torch.zeros(5, 2048)).shape == (5, 3)


def test_linear_head_without_dropout() -> None:
    assert [type(m) for m in build_head(7, 2, Head(hidden=(), dropout=0.0))] == [nn.Linear]


def test_glorot_uniform_with_zero_bias() -> None:
    torch.manual_seed(0)
    for layer in linears(build_head(300, 3, Head(hidden=(128,)))):
        limit = math.sqrt(6.0 / (layer.in_features + layer.out_features))
        assert (layer.bias == 0).all()
        assert layer.weight.abs().max() <= limit
        assert layer.weight.abs().max() > 0.97 * limit
        assert layer.weight.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.08)
        assert abs(layer.weight.mean().item()) < 0.1 * limit


def test_torch_s_own_start_differs() -> None:
    torch.manual_seed(0)
    assert any((layer.bias != 0).any() for layer in linears(build_head(300, 3, Head(init="torch"))))


def test_same_seed_same_head() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_head(10, 3, Head()).state_dict())
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_standardise() -> None:
    torch.manual_seed(0)
    features = torch.randn(50, 4) * torch.tensor([1.0, 10.0, 1e-3, 0.0]) + 5.0
    layer = Standardise(4)
    torch.testing.assert_close(layer(features), features)
    layer.measure(features)
    found = layer(features)
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=2e-3, rtol=0)
    torch.testing.assert_close(found[:, :3].std(0, unbiased=False), torch.ones(3), atol=2e-3, rtol=0)
    assert (found[:, 3] == 0).all()  # it does not vary
    assert not list(layer.parameters())
    assert set(layer.state_dict()) == {"mean", "std"}


def test_head_begins_with_it_where_asked() -> None:
    assert isinstance(build_head(4, 2, Head(), standardise=True)[0], Standardise)
    assert not isinstance(build_head(4, 2, Head())[0], Standardise)
