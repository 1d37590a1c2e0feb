"""Classification metrics of one set of predictions, for the cases as they are or under many case weights at once.

Weights are case multiplicities: case ``i`` with weight 3 counts as three rows. That makes a bootstrap of thousands of
resamples a few matrix products instead of thousands of calls. Formula, meaning and source of every metric stand in the
table ``METRICS`` of `sonobreast.evaluation.glossary`.

A value that is not defined (a class without a case, 0/0) is NaN, never a silent 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt

from sonobreast.errors import SonobreastError, nearest
from sonobreast.evaluation.glossary import metric_names

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# A share such as 0.9 * 70 need not be exact in binary: without this, a specificity of exactly 90 % may miss "at least".
_SLACK = 1e-9


@dataclass(frozen=True, eq=False)
class Scored:
    """Predictions of one model run for n cases, with the truth. Checked when made; the arrays are read-only copies.

    Parameters
    ----------
    label : int (n,)
        True class, an index into `classes`.
    predicted : int (n,)
        Decided class. It need not be the most probable one: a threshold may have decided.
    probability : float (n, C)
        Each in [0, 1], rows sum to 1 within 1e-4.
    classes : tuple of str
        The C >= 2 class names. The clinical metrics are about the one named "malignant" (capitals aside).

    Raises
    ------
    SonobreastError
        For any shape, range or name that does not hold.
    """

    label: Ints
    predicted: Ints
    probability: Floats
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        classes = tuple(self.classes)
        folded = [c.strip().casefold() for c in classes]
        if len(classes) < 2 or len(set(folded)) < len(folded) or "macro" in folded or "" in folded:
            raise SonobreastError(
                f"the class names {classes} cannot be used",
                remedy='give two or more different names, none of them empty or "macro"',
            )
        probability = np.array(self.probability, dtype=np.float64)
        n = probability.shape[0] if probability.ndim == 2 else 0
        if n == 0 or probability.shape != (n, len(classes)):
            raise SonobreastError(
                f"probabilities have the shape {probability.shape}, not (cases, {len(classes)})",
                remedy="give one row for each case (at least one) and one column for each class",
            )
        # Written so that NaN fails as well.
        bad = ~(np.all((probability >= -1e-6) & (probability <= 1 + 1e-6), axis=1))
        bad |= ~(np.abs(probability.sum(axis=1) - 1) <= 1e-4)
        if bad.any():
            raise SonobreastError(
                f"{int(bad.sum())} of {n} rows are no probabilities; the first is row {int(bad.argmax())}: "
                f"{probability[bad.argmax()].tolist()}",
                remedy="give finite values from 0 to 1 that sum to 1 in each row (softmax outputs, not logits)",
            )
        np.clip(probability, 0.0, 1.0, out=probability)
        object.__setattr__(self, "classes", classes)
        object.__setattr__(self, "label", _class_index(self.label, n, len(classes), "labels"))
        object.__setattr__(self, "predicted", _class_index(self.predicted, n, len(classes), "predicted classes"))
        object.__setattr__(self, "probability", probability)
        for array in (self.label, self.predicted, self.probability):
            array.flags.writeable = False

    @property
    def n(self) -> int:
        """Number of cases."""
        return len(self.label)

    @cached_property
    def malignant(self) -> int | None:
        """Index of the class named "malignant" (spaces and capitals aside), None where there is none."""
        folded = [c.strip().casefold() for c in self.classes]
        return folded.index("malignant") if "malignant" in folded else None

    @property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Where the decision is right, bool (n,)."""
        return np.equal(self.label, self.predicted)


def _class_index(values: npt.ArrayLike, n: int, classes: int, what: str) -> Ints:
    given = np.asarray(values)
    whole = given.shape == (n,) and given.dtype.kind in "biuf" and bool(np.all(given == np.floor(given)))
    if not whole or given.min() < 0 or given.max() >= classes:
        raise SonobreastError(
            f"the {what} are not {n} whole numbers from 0 to {classes - 1}",
            remedy="give for each case the index of its class in the list of classes",
        )
    return given.astype(np.int64)


@overload
def evaluate(scored: Scored, weight: None = None, *, metrics: Sequence[str] | None = None) -> dict[str, float]: ...
@overload
def evaluate(scored: Scored, weight: npt.ArrayLike, *, metrics: Sequence[str] | None = None) -> dict[str, Floats]: ...


def evaluate(
    scored: Scored, weight: npt.ArrayLike | None = None, *, metrics: Sequence[str] | None = None
) -> dict[str, float] | dict[str, Floats]:
    """All metrics of `METRICS`, for the cases as they are or under R sets of case multiplicities.

    Parameters
    ----------
    scored : Scored
        n cases.
    weight : float (R, n), optional
        Non-negative, finite case multiplicities; row r gives the metrics of the r-th resample. A weight of k is
        the same as k copies of the case.
    metrics : sequence of str, optional
        Only these (see `metric_names`).

    Returns
    -------
    dict
        Metric name to a float, or to float (R,) where weights are given. NaN where not defined (``Metric.undefined``).
        Metrics of malignancy are left out where no class is named "malignant".

    Raises
    ------
    SonobreastError
        For weights of another shape, negative or not finite, and for unknown metrics.
    """
    known = metric_names(scored.classes)
    names = known if metrics is None else list(metrics)
    for name in names:
        if name not in known:
            raise SonobreastError(f'no metric is named "{name}" for these classes', remedy=nearest(name, known))
    weights = np.ones((1, scored.n)) if weight is None else _checked_weight(weight, scored.n)
    values: dict[str, Floats] = {}
    for parts, function in _FAMILIES:
        if any(name.startswith(parts) for name in names):
            values |= function(scored, weights)
    if weight is None:
        return {name: float(values[name][0]) for name in names}
    return {name: values[name] for name in names}


def confusion(scored: Scored, weight: npt.ArrayLike | None = None) -> Floats:
    """Confusion matrix: rows truth, columns prediction.

    Parameters
    ----------
    scored : Scored
        n cases of C classes.
    weight : float (R, n), optional
        Case multiplicities as in `evaluate`.

    Returns
    -------
    float (C, C), or (R, C, C) with weights
        Counts; whole numbers where the weights are.
    """
    weights = np.ones((1, scored.n)) if weight is None else _checked_weight(weight, scored.n)
    counts = len(scored.classes)
    cell = np.eye(counts * counts)[scored.label * counts + scored.predicted]  # (n, C * C)
    matrix: Floats = (weights @ cell).reshape(-1, counts, counts)  # (R, C, C)
    first: Floats = matrix[0]
    return first if weight is None else matrix


def _checked_weight(weight: npt.ArrayLike, n: int) -> Floats:
    weights = np.asarray(weight, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != n or not np.all((weights >= 0) & np.isfinite(weights)):
        raise SonobreastError(
            f"case weights of the shape {weights.shape} do not fit {n} cases, or are negative or not finite",
            remedy="give an array of the shape (resamples, cases) with values of 0 or more",
        )
    return weights


def _ratio(above: Floats, below: Floats) -> Floats:
    """Element-wise quotient, NaN where the denominator is 0."""
    quotient: Floats = np.full(np.broadcast_shapes(above.shape, below.shape), np.nan)
    np.divide(above, below, out=quotient, where=below > 0)
    return quotient


def _by_decision(scored: Scored, weights: Floats) -> dict[str, Floats]:
    """Everything that the confusion matrix gives."""
    matrix = confusion(scored, weights)  # (R, C, C)
    hit = np.diagonal(matrix, axis1=1, axis2=2)  # (R, C)
    truth, called = matrix.sum(axis=2), matrix.sum(axis=1)  # (R, C)
    total = truth.sum(axis=1)  # (R,)
    precision, recall, f1 = _ratio(hit, called), _ratio(hit, truth), _ratio(2 * hit, truth + called)
    # A macro average over classes of which one was not there says nothing about that class: NaN, not a 0 in the mean.
    absent = (truth == 0).any(axis=1)
    values = {"accuracy": _ratio(hit.sum(axis=1), total)}
    for name, each in (("precision", np.nan_to_num(precision)), ("recall", recall), ("f1", f1)):
        values[f"{name}_macro"] = np.where(absent, np.nan, each.mean(axis=1))
    values["balanced_accuracy"] = values["recall_macro"].copy()
    for c, class_name in enumerate(scored.classes):
        values[f"precision_{class_name}"] = precision[:, c]
        values[f"recall_{class_name}"] = recall[:, c]
        values[f"f1_{class_name}"] = f1[:, c]
    if scored.malignant is not None:
        m = scored.malignant
        values["sensitivity_malignant"] = recall[:, m]
        others = total - truth[:, m]
        values["specificity_malignant"] = _ratio(others - (called[:, m] - hit[:, m]), others)
    return values


def _by_rank(scored: Scored, weights: Floats) -> dict[str, Floats]:
    """Everything that the order of the probabilities gives, class by class against the rest."""
    aucs = []
    values: dict[str, Floats] = {}
    for c in range(len(scored.classes)):
        inside, outside = _tied_counts(scored.probability[:, c], scored.label == c, weights)  # (R, T) each
        insiders, outsiders = inside.sum(axis=1), outside.sum(axis=1)  # (R,)
        below = np.cumsum(outside, axis=1)  # outsiders at or below each distinct score
        won = np.einsum("rt,rt->r", inside, below - outside / 2)  # ties count half: midranks
        aucs.append(_ratio(won, insiders * outsiders))
        if c == scored.malignant:
            # Threshold t calls every score >= t malignant. (R, T): found cancers and spared others at each t.
            found = insiders[:, None] - (np.cumsum(inside, axis=1) - inside)
            spared = below - outside
            specific = spared >= (0.9 - _SLACK) * outsiders[:, None]
            sensitive = found >= (0.9 - _SLACK) * insiders[:, None]
            both = (insiders > 0) & (outsiders > 0)
            # The threshold above every score spares all and finds none: hence 0 where no other one is specific enough.
            best_found = np.where(specific, found, 0.0).max(axis=1)
            best_spared = np.where(sensitive, spared, 0.0).max(axis=1)
            values["auc_malignant"] = aucs[-1]
            values["sensitivity_at_90_specificity"] = np.where(both, _ratio(best_found, insiders), np.nan)
            values["specificity_at_90_sensitivity"] = np.where(both, _ratio(best_spared, outsiders), np.nan)
    values["auc_ovr_macro"] = np.mean(aucs, axis=0)
    return values


def _tied_counts(score: Floats, inside: npt.NDArray[np.bool_], weights: Floats) -> tuple[Floats, Floats]:
    """Weight of insiders and of outsiders at each of the T distinct scores, ascending: two float (R, T)."""
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # (T,)
    carried = weights[:, order]  # (R, n)
    return (
        np.add.reduceat(carried * inside[order], starts, axis=1),
        np.add.reduceat(carried * ~inside[order], starts, axis=1),
    )


def _by_probability(scored: Scored, weights: Floats) -> dict[str, Floats]:
    """Proper scores: a loss for each case, averaged."""
    truth = np.eye(len(scored.classes))[scored.label]  # (n, C)
    squared = ((scored.probability - truth) ** 2).sum(axis=1)  # (n,)
    of_truth = scored.probability[np.arange(scored.n), scored.label]
    surprise = -np.log(np.maximum(of_truth, np.finfo(np.float64).eps))
    total = weights.sum(axis=1)
    return {"brier": _ratio(weights @ squared, total), "log_loss": _ratio(weights @ surprise, total)}


_FAMILIES: tuple[tuple[tuple[str, ...], Callable[[Scored, Floats], dict[str, Floats]]], ...] = (
    (
        ("accuracy", "balanced", "precision_", "recall_", "f1_", "sensitivity_malignant", "specificity_malignant"),
        _by_decision,
    ),
    (("auc_", "sensitivity_at_", "specificity_at_"), _by_rank),
    (("brier", "log_loss"), _by_probability),
)


def group_codes(group: npt.ArrayLike, n: int, what: str = "group") -> tuple[Ints, npt.NDArray[np.generic]]:
    """Groups (patients, near-duplicate groups) as numbers.

    Parameters
    ----------
    group : (n,)
        Whole numbers or texts.
    n : int
        Number of cases that there must be.

    Returns
    -------
    codes : int (n,)
        0 .. G-1, an index into `names`.
    names : (G,)
        The distinct groups, sorted.

    Raises
    ------
    SonobreastError
        Where the length does not fit or a group is missing: missing ids must not become one large group in silence.
    """
    given = np.asarray(group)
    if given.dtype.kind in "OUS":
        given = given.astype(str)
        missing = np.isin(np.char.lower(np.char.strip(given)), ("", "nan", "none", "<na>", "nat", "null"))
    else:
        missing = given != given  # NaN alone differs from itself
    if given.shape != (n,) or missing.any():
        raise SonobreastError(
            f"the {what} column has the shape {given.shape} for {n} cases, with {int(missing.sum())} missing",
            remedy=f"give each case its {what}; a case that belongs with no other gets a name of its own",
        )
    names, codes = np.unique(given, return_inverse=True)
    return codes.astype(np.int64), names


def by_patient(scored: Scored, patient: npt.ArrayLike) -> Scored:
    """One row a patient: mean of the images' probabilities, decided by the largest.

    The rows follow ``np.unique(patient)`` (sorted ids). Equal largest probabilities go to the class named first.

    A patient whose images carry several labels gets the gravest finding, as a biopsy-proven cancer makes the patient a
    cancer patient whatever the other pictures show: malignant before anything else, and any other finding before
    "normal". The mean over images is then a cautious score: normal pictures dilute it.

    Parameters
    ----------
    scored : Scored
        n images.
    patient : (n,)
        Patient of each image.

    Returns
    -------
    Scored
        As many rows as patients.

    Raises
    ------
    SonobreastError
        For missing ids, and where a patient's labels have no order that is known here.
    """
    codes, names = group_codes(patient, scored.n, "patient")
    member = np.zeros((len(names), len(scored.classes)))
    np.add.at(member, codes, scored.probability)
    probability = member / np.bincount(codes)[:, None]
    has = np.zeros((len(names), len(scored.classes)), dtype=bool)
    has[codes, scored.label] = True
    if scored.malignant is not None:
        has[has[:, scored.malignant]] = np.arange(len(scored.classes)) == scored.malignant
    folded = [c.strip().casefold() for c in scored.classes]
    if "normal" in folded:
        has[has.sum(axis=1) > 1, folded.index("normal")] = False
    unclear = np.flatnonzero(has.sum(axis=1) > 1)
    if len(unclear):
        labels = [c for c, there in zip(scored.classes, has[unclear[0]], strict=True) if there]
        raise SonobreastError(
            f"{len(unclear)} patients have images of several classes; the first is {names[unclear[0]]}: {labels}",
            remedy="give each patient one label, or evaluate by image",
        )
    return Scored(has.argmax(axis=1), probability.argmax(axis=1), probability, scored.classes)


class PredictiveValues(NamedTuple):
    """Positive and negative predictive value, each in [0, 1] or NaN."""

    ppv: float
    npv: float


def ppv_npv(sensitivity: float, specificity: float, prevalence: float) -> PredictiveValues:
    """Predictive values at a stated prevalence, by Bayes' theorem.

    ``ppv = Se P / (Se P + (1 - Sp)(1 - P))``, ``npv = Sp (1 - P) / (Sp (1 - P) + (1 - Se) P)``: the share of cancers
    among those called malignant, and of those without cancer among those not called so, in a population of which the
    share P has cancer. A study's own precision holds for the study's mix only (BUSI: 27 % malignant; screening: under
    1 %).

    Parameters
    ----------
    sensitivity, specificity, prevalence : float
        Each in [0, 1].

    Returns
    -------
    PredictiveValues
        NaN where nobody is called so.

    Raises
    ------
    SonobreastError
        For a value outside [0, 1] (a percentage, for instance).

    References
    ----------
    Altman & Bland 1994, Diagnostic tests 2: predictive values, BMJ 309:102.
    """
    given = {"sensitivity": sensitivity, "specificity": specificity, "prevalence": prevalence}
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise SonobreastError(f"{name} is {value}", remedy="give a share from 0 to 1, not a percentage")
    called, spared = sensitivity * prevalence, specificity * (1 - prevalence)
    positive = called + (1 - specificity) * (1 - prevalence)
    negative = spared + (1 - sensitivity) * prevalence
    return PredictiveValues(
        called / positive if positive > 0 else float("nan"), spared / negative if negative > 0 else float("nan")
    )
