"""What each metric is, as data: title, formula, meaning, paper, range. The report explains its figures from here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sonobreast.errors import SonobreastError, nearest


@dataclass(frozen=True)
class Metric:
    """What a metric is, for people. ``<class>`` in a name or a text stands for any one class.

    ``low`` and ``high`` bound the possible values. ``undefined`` says when the value is NaN.
    """

    name: str
    title: str
    formula: str
    meaning: str
    source: str
    undefined: str
    low: float = 0.0
    high: float = 1.0
    higher_is_better: bool = True


SYMBOLS = (
    "n cases, C classes; n_jk is the (weighted) number of cases of class j that were predicted as class k, n_j. and "
    "n_.k its row and column sums; p_ic the probability of class c for case i; y_ic is 1 where case i is of class c, "
    "else 0; M the malignant class, s = p_iM the malignant score."
)

_ALTMAN = "Altman & Bland 1994, BMJ 308:1552"
_SOKOLOVA = "Sokolova & Lapalme 2009, Inf Process Manag 45:427, table 3"
_ABSENT = "a class has no case"
_ONE_SIDE = "no malignant case, or no other case"

METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "accuracy",
            "Accuracy",
            "sum_j n_jj / n",
            "Share of images given their right class. Depends on how common each class is in this set.",
            _SOKOLOVA,
            "no case",
        ),
        Metric(
            "balanced_accuracy",
            "Balanced accuracy",
            "(1/C) sum_j n_jj / n_j.",
            "Mean of the classes' recalls: each class counts the same, however rare. Equals recall_macro.",
            "Brodersen et al. 2010, ICPR, 3121-3124",
            _ABSENT,
        ),
        Metric(
            "precision_macro",
            "Precision, macro average",
            "(1/C) sum_k n_kk / n_.k, with 0 for a class that is never predicted (scikit-learn, zero_division=0)",
            "Mean over the classes of the share of right ones among the images given that class.",
            _SOKOLOVA,
            _ABSENT,
        ),
        Metric(
            "recall_macro",
            "Recall, macro average",
            "(1/C) sum_j n_jj / n_j.",
            "Mean over the classes of the share of the class's images that were found.",
            _SOKOLOVA,
            _ABSENT,
        ),
        Metric(
            "f1_macro",
            "F1, macro average",
            "(1/C) sum_j 2 n_jj / (n_j. + n_.j)  (mean of the classes' F1, not F1 of the means)",
            "Mean over the classes of the harmonic mean of precision and recall.",
            "Opitz & Burst 2019, arXiv:1911.03347, 'averaged F1'",
            _ABSENT,
        ),
        Metric(
            "precision_<class>",
            "Precision, <class>",
            "n_kk / n_.k for k = <class>",
            "Of the images called <class>, the share that is; falls where <class> is rarer than in this set.",
            "Altman & Bland 1994, BMJ 309:102 (predictive values)",
            "<class> is never predicted (0/0; scikit-learn prints 0 here)",
        ),
        Metric(
            "recall_<class>",
            "Recall, <class>",
            "n_jj / n_j. for j = <class>",
            "Of the images that are <class>, the share that was called so.",
            _ALTMAN,
            "no case of <class>",
        ),
        Metric(
            "f1_<class>",
            "F1, <class>",
            "2 n_jj / (n_j. + n_.j) for j = <class>",
            "Harmonic mean of precision and recall of <class>; 0 where none was found.",
            "van Rijsbergen 1979, Information Retrieval, chapter 7",
            "no case of <class> and none predicted",
        ),
        Metric(
            "sensitivity_malignant",
            "Sensitivity for malignancy",
            "n_MM / n_M.",
            "Of the cancers, the share that was called malignant: 1 minus this is the share missed.",
            _ALTMAN,
            "no malignant case",
        ),
        Metric(
            "specificity_malignant",
            "Specificity for malignancy",
            "1 - (sum_{j != M} n_jM) / (sum_{j != M} n_j.)",
            "Of all that is not cancer, the share that was not called malignant: 1 minus this is the false alarms.",
            _ALTMAN,
            "every case is malignant",
        ),
        Metric(
            "sensitivity_at_90_specificity",
            "Sensitivity at 90 % specificity",
            "max over t of P(s >= t | M), subject to P(s < t | not M) >= 0.9; t is an observed score or above all",
            "Cancers found when at most 1 in 10 others raises an alarm. The threshold is chosen on these same cases, "
            "which flatters small sets.",
            "Pepe 2003, The Statistical Evaluation of Medical Tests for Classification and Prediction, ROC(0.1)",
            _ONE_SIDE,
        ),
        Metric(
            "specificity_at_90_sensitivity",
            "Specificity at 90 % sensitivity",
            "max over t of P(s < t | not M), subject to P(s >= t | M) >= 0.9; t is an observed score",
            "Others left in peace when at least 9 in 10 cancers are found. The threshold is chosen on these same "
            "cases, which flatters small sets.",
            "Pepe 2003, The Statistical Evaluation of Medical Tests for Classification and Prediction",
            _ONE_SIDE,
        ),
        Metric(
            "auc_malignant",
            "AUC, malignant against rest",
            "P(s of a cancer > s of another) + P(equal)/2, over all pairs",
            "How often a cancer gets a higher malignant probability than an image without cancer. 0.5 is chance. "
            "No threshold enters, and neither does the share of cancers.",
            "Hanley & McNeil 1982, Radiology 143:29",
            _ONE_SIDE,
        ),
        Metric(
            "auc_ovr_macro",
            "AUC, one against rest, macro average",
            "(1/C) sum_c AUC of p_ic for class c against the rest",
            "Mean of the classes' AUCs, each class counting the same.",
            "Provost & Domingos 2000, CeDER working paper IS-00-04, unweighted",
            _ABSENT,
        ),
        Metric(
            "brier",
            "Brier score",
            "(1/n) sum_i sum_c (p_ic - y_ic)^2  (sum over classes; for two classes twice the one-column Brier score)",
            "Squared distance of the probabilities from the truth: 0 is perfect, 2 is sure and always wrong, "
            "1 - 1/C is knowing nothing. Punishes false certainty.",
            "Brier 1950, Mon Weather Rev 78:1, equation 2",
            "no case",
            high=2.0,
            higher_is_better=False,
        ),
        Metric(
            "log_loss",
            "Log loss",
            "-(1/n) sum_i ln p_{i, true class of i}, p clipped to at least 2.2e-16 (natural logarithm)",
            "Surprise at the truth: 0 is perfect, ln C is knowing nothing; one sure mistake costs up to 36.",
            "Good 1952, J R Stat Soc B 14:107",
            "no case",
            high=float("inf"),
            higher_is_better=False,
        ),
    )
}


_RELOADED = "Maier-Hein, Reinke et al. 2024, Metrics Reloaded, Nat Methods 21:195"
_NO_LESION = "no image with an outlined lesion"

# Figures of predicted lesion masks. They are means over images, so `evaluate` does not know them.
SEGMENTATION_METRICS: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric(
            "dice",
            "Dice, mean",
            "mean over the images with a lesion of 2 |P and T| / (|P| + |T|), P and T the predicted and true lesion",
            "Overlap of the predicted with the true lesion: 0 is none, 1 is the same pixels. A lesion that is missed "
            "counts 0; images without a lesion do not count.",
            "Dice 1945, Ecology 26:297; " + _RELOADED,
            _NO_LESION,
        ),
        Metric(
            "median_dice",
            "Dice, median",
            "median over the images with a lesion of 2 |P and T| / (|P| + |T|)",
            "What half of the lesions reach; it is far above the mean where a few lesions are missed.",
            _RELOADED,
            _NO_LESION,
        ),
        Metric(
            "iou",
            "Intersection over union, mean",
            "mean over the images with a lesion of |P and T| / |P or T|, which is Dice / (2 - Dice) of each image",
            "Overlap as a share of all pixels that either outline holds (Jaccard index); stricter than Dice.",
            "Jaccard 1912, New Phytol 11:37; " + _RELOADED,
            _NO_LESION,
        ),
        Metric(
            "hd95_px",
            "95 % Hausdorff distance, pixels",
            "mean over the images with a lesion that was found of max(Q95 over p of d(p, T), Q95 over t of d(t, P)); "
            "p, t border pixels, d the distance to the nearest border pixel of the other mask, Q95 the 95th percentile",
            "How far the two outlines are apart where they are farthest, but for the worst 5 %. Pixels of the original "
            "image; lesions that were missed have none and do not count.",
            "Huttenlocher, Klanderman & Rucklidge 1993, IEEE PAMI 15:850; " + _RELOADED,
            "no lesion was found",
            high=float("inf"),
            higher_is_better=False,
        ),
        Metric(
            "hd95_mm",
            "95 % Hausdorff distance, mm",
            "as hd95_px, times the image's pixel spacing",
            "The distance of the outlines in millimetres, over the images whose file gives the pixel spacing.",
            _RELOADED,
            "no lesion was found in an image with a known pixel spacing",
            high=float("inf"),
            higher_is_better=False,
        ),
        Metric(
            "missed",
            "Lesions missed",
            "share of the images with a lesion in which no pixel is predicted",
            "Lesions of which the network draws nothing at all.",
            _RELOADED,
            _NO_LESION,
            higher_is_better=False,
        ),
        Metric(
            "false_positive",
            "Images without a lesion, with a mask",
            "share of the images without a lesion in which any pixel is predicted",
            "How often a lesion is drawn where there is none.",
            _RELOADED,
            "no image without a lesion",
            higher_is_better=False,
        ),
        Metric(
            "false_positive_share",
            "Area drawn without a lesion",
            "mean over the images without a lesion of |P| / pixels of the image",
            "How much of an image without a lesion is drawn as one, on average.",
            _RELOADED,
            "no image without a lesion",
            higher_is_better=False,
        ),
    )
}


def metric_names(classes: Sequence[str]) -> list[str]:
    """Names of the metrics that `evaluate` gives for these classes, in its order."""
    names: list[str] = []
    for name in METRICS:
        if name.endswith("_<class>"):
            names += [name.replace("<class>", c) for c in classes]
        elif not _clinical(name) or any(c.strip().casefold() == "malignant" for c in classes):
            names.append(name)
    return names


def _clinical(name: str) -> bool:
    return name in (
        "sensitivity_malignant",
        "specificity_malignant",
        "sensitivity_at_90_specificity",
        "specificity_at_90_sensitivity",
        "auc_malignant",
    )


def describe(name: str) -> Metric:
    """The entry of `METRICS` or `SEGMENTATION_METRICS` for a name, with the class filled in (``recall_benign``)."""
    if name in METRICS or name in SEGMENTATION_METRICS:
        return (METRICS | SEGMENTATION_METRICS)[name]
    kind, _, class_name = name.partition("_")
    template = METRICS.get(f"{kind}_<class>")
    if template is None or not class_name:
        raise SonobreastError(f'no metric is named "{name}"', remedy=nearest(name, METRICS))
    return replace(
        template,
        name=name,
        **{
            field: getattr(template, field).replace("<class>", class_name)
            for field in ("title", "formula", "meaning", "undefined")
        },
    )
