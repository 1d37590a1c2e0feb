"""What a figure shows is computed first, and that is what is tested."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from tests.tables import predictions

from sonobreast.evaluation.plots import differences_frame, differences_plot, png
from sonobreast.evaluation.summary import study_metrics


def metrics(**strength: float) -> dict[str, object]:
    table = pd.concat(
        [predictions(strength=s, noise=i, optimizer=o) for i, (o, s) in enumerate(strength.items())], ignore_index=True
    )
    return study_metrics(table, resamples=200)


def test_differences_are_those_of_the_metrics_file() -> None:
    comparisons = metrics(adam=0.9, sgdm=0.1, rmsprop=0.4)["comparisons"]
    frame = differences_frame(comparisons["pairs"], comparisons["metrics"])  # type: ignore[index]
    assert list(frame.columns) == ["a", "b", "metric", "difference", "low", "high", "p_holm"]
    assert len(frame) == 6
    first = frame.iloc[0]
    assert (first["a"], first["b"], first["metric"]) == ("Net + Adam", "Net + SGDM", "accuracy")
    assert first["low"] < first["difference"] < first["high"]
    assert first["difference"] > 0.2


def test_the_figure_stands_whatever_is_missing() -> None:
    comparisons = metrics(adam=0.9, sgdm=0.1)["comparisons"]
    frame = differences_frame(comparisons["pairs"], comparisons["metrics"])  # type: ignore[index]
    figure = differences_plot(frame)
    panels = figure.axes
    assert [a.get_title() for a in panels] == ["Accuracy", "AUC, malignant against rest"]
    for axis, difference in zip(panels, frame["difference"], strict=True):
        low, high = axis.get_xlim()
        assert low == pytest.approx(-high)
        assert low < difference < high
        drawn = np.concatenate([line.get_xdata() for line in axis.lines if line.get_marker() == "o"])
        assert drawn.tolist() == [difference]
    nothing = frame.assign(difference=np.nan, low=np.nan, high=np.nan, p_holm=np.nan)
    assert png(differences_plot(nothing)).startswith(b"\x89PNG")
