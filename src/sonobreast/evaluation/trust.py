"""Calibration, decisions, conformal sets and abstention of one configuration: parts of a study's ``metrics.json``."""

from __future__ import annotations

from typing import Any

import pandas as pd

from sonobreast.evaluation.abstention import abstention_metrics
from sonobreast.evaluation.calibration import calibration_metrics
from sonobreast.evaluation.conformal import conformal_metrics
from sonobreast.evaluation.decisions import decision_metrics
from sonobreast.evaluation.predictions import whole_repeats
from sonobreast.evaluation.recalibration import recalibrated

PARTS = ("calibration", "decisions", "conformal", "abstention")


def trust_metrics(table: pd.DataFrame, *, resamples: int = 2000) -> dict[str, Any]:
    """What `PARTS` names, JSON-ready; each says in ``reason`` why it has no figures.

    Calibration and operating points are fitted on each run's validation rows. The sets take the probabilities as the
    network gives them, abstention the temperature-scaled ones.

    Parameters
    ----------
    table : DataFrame
        Rows of one configuration.
    resamples : int
    """
    found = recalibrated(table)
    return {
        "calibration": calibration_metrics(found, resamples=resamples),
        "decisions": decision_metrics(found, resamples=resamples),
        "conformal": conformal_metrics(whole_repeats(found.raw)),
        "abstention": abstention_metrics(whole_repeats(found.temperature), resamples=resamples),
    }
