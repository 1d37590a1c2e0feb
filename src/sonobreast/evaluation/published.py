"""The tables of the two papers that this package implements, as printed, misprints included.

The numbers are data, not targets: a report prints them beside its own, and `sonobreast.evaluation.plausibility` finds
what is inconsistent in them. Every cell is a `Decimal` made from the printed text, because its number of decimals says
how far the true value may lie from the printed one ("0.90" is anything from 0.895 to 0.905, "0.9" from 0.85 to 0.95).

What the papers do not say is not filled in: it is listed in `Paper.not_stated`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from sonobreast.errors import SonobreastError, nearest

SUBSETS = ("train", "validation", "test")
CLASSES = ("benign", "malignant", "normal")
METRICS = ("precision", "recall", "f1", "accuracy")
TOTAL = "total"


@dataclass(frozen=True)
class Row:
    """One line of a table in long form; what a table does not print stays None or empty.

    Attributes
    ----------
    architecture, optimizer : str
        The configuration, e.g. "ResNet50V2" and "sgdm"; the optimizer is "" where the paper compares none.
    subset : str
        "train", "validation", "test", or "" where the table does not say (then the test set is meant).
    label : str
        The class, "total" in a table of counts, or "" for a figure over all classes.
    precision, recall, f1, accuracy : Decimal or None
        As printed: 0-1, or 0-100 where the table lists the column in `Table.percent`. `accuracy` is always that of
        all classes together.
    support, n : int or None
        Images of this class, and of all classes, in the subset.
    count : int or None
        Images, in a table that only counts them.
    interval : bool
        Whether the paper prints a confidence interval with the accuracy.
    best : str
        What the paper calls this row: "" (nothing), "all" (best of the table), "architecture" (best optimizer of its
        architecture). It holds among rows of the same subset.
    line : int or None
        Line in the file that the row was read from.
    """

    architecture: str = ""
    optimizer: str = ""
    subset: str = ""
    label: str = ""
    precision: Decimal | None = None
    recall: Decimal | None = None
    f1: Decimal | None = None
    accuracy: Decimal | None = None
    support: int | None = None
    n: int | None = None
    count: int | None = None
    interval: bool = False
    best: str = ""
    line: int | None = None


@dataclass(frozen=True)
class Table:
    """A printed table (or the figures in an abstract) in long form.

    Attributes
    ----------
    paper : str
        "aulia2026", "yadav2024", or the name of the file that it was read from.
    name : str
        "Table 3", "abstract".
    rows : tuple of Row
    percent : frozenset of str
        The metrics that are printed on a 0-100 scale; all others are on 0-1.
    note : str
        What a reader should know of this table.
    """

    paper: str
    name: str
    rows: tuple[Row, ...]
    percent: frozenset[str] = frozenset()
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper, what it says of data and settings, what it leaves out, and its tables.

    Attributes
    ----------
    key, title, citation : str
    data, settings : mapping of str to str
        What is stated, in words.
    not_stated : tuple of str
        What a reproduction has to choose for itself.
    tables : tuple of Table
    """

    key: str
    title: str
    citation: str
    data: Mapping[str, str]
    settings: Mapping[str, str]
    not_stated: tuple[str, ...]
    tables: tuple[Table, ...]


def _aulia_counts() -> tuple[Table, Table]:
    whole = {"benign": 487, "malignant": 210, "normal": 133, TOTAL: 780}
    split = {"benign": (96, 21, 21), "malignant": (102, 22, 22), "normal": (93, 20, 20), TOTAL: (291, 63, 63)}
    return (
        Table(
            "aulia2026",
            "Table 1",
            tuple(Row(label=label, count=count) for label, count in whole.items()),
            note="benign 487 is a misprint for 437, the only value with which the classes sum to the printed 780",
        ),
        Table(
            "aulia2026",
            "Table 2",
            tuple(
                Row(label=label, subset=subset, count=count)
                for label, counts in split.items()
                for subset, count in zip(SUBSETS, counts, strict=True)
            ),
            note="417 of the 780 images; how they were drawn is not stated",
        ),
    )


def _aulia_accuracies() -> Table:
    printed = {
        ("ResNet50V2", "adam"): ("86.94", "79.37", "87.30"),
        ("ResNet50V2", "rmsprop"): ("87.29", "87.30", "88.89"),
        ("ResNet50V2", "sgdm"): ("85.22", "93.65", "92.06"),
        ("MobileNetV2", "adam"): ("86.67", "79.37", "82.54"),
        ("MobileNetV2", "rmsprop"): ("82.13", "87.30", "85.71"),
        ("MobileNetV2", "sgdm"): ("84.49", "90.48", "85.71"),
    }
    sizes = {"train": 291, "validation": 63, "test": 63}
    # "SGDM best in both", and ResNet50V2 with SGDM the best of all, are claims about testing.
    claims = {("ResNet50V2", "sgdm", "test"): "all", ("MobileNetV2", "sgdm", "test"): "architecture"}
    rows = tuple(
        Row(
            architecture,
            optimizer,
            subset,
            accuracy=Decimal(text),
            n=sizes[subset],
            best=claims.get((architecture, optimizer, subset), ""),
        )
        for (architecture, optimizer), cells in printed.items()
        for subset, text in zip(SUBSETS, cells, strict=True)
    )
    return Table("aulia2026", "Table 3", rows, percent=frozenset({"accuracy"}), note="sizes n are those of Table 2")


def _aulia_classes() -> Table:
    # Precision, recall, F1 of benign, malignant, normal; then the accuracy where it is printed.
    printed: dict[tuple[str, str], tuple[str, str, str, str]] = {
        ("ResNet50V2", "adam"): (".90/.86/.88", ".88/.95/.91", ".84/.80/.82", ".87"),
        ("ResNet50V2", "rmsprop"): (".86/.90/.88", ".90/.86/.88", ".90/.90/.90", ""),
        ("ResNet50V2", "sgdm"): (".94/.81/.87", ".91/.95/.93", ".91/1.00/.95", ".92"),
        ("MobileNetV2", "adam"): (".94/.71/.81", ".87/.91/.89", ".71/.85/.77", ".83"),
        ("MobileNetV2", "rmsprop"): (".93/.67/.78", ".75/.95/.84", ".95/.95/.95", ".86"),
        ("MobileNetV2", "sgdm"): (".93/.67/.78", ".72/.95/.82", ".95/.90/.92", ".84"),
    }
    supports = (21, 22, 20)
    rows: list[Row] = []
    for (architecture, optimizer), (*cells, accuracy) in printed.items():
        for label, cell, support in zip(CLASSES, cells, supports, strict=True):
            precision, recall, f1 = (Decimal(text) for text in cell.split("/"))
            rows.append(
                Row(architecture, optimizer, "test", label, precision=precision, recall=recall, f1=f1, support=support)
            )
        if accuracy:
            rows.append(Row(architecture, optimizer, "test", accuracy=Decimal(accuracy), n=sum(supports)))
    return Table("aulia2026", "Table 4", tuple(rows))


def _yadav_tables() -> tuple[Table, Table]:
    modified = "modified ResNet-101"
    printed = {
        "ResNet-18": (".8921", ".9123", ".9014", ".8898"),
        "ResNet-34": (".9040", ".9154", ".9102", ".9001"),
        "ResNet-50": (".9308", "94.02", ".9405", ".9274"),
        "ResNet-152": (".9621", ".9614", ".9652", ".9847"),
        "ResNet-101": (".9542", ".9548", ".9760", ".9511"),
        modified: (".9855", ".9855", ".9756", ".9756"),
    }
    rows = tuple(
        _overall_row(architecture, cells, best="all" if architecture == modified else "")
        for architecture, cells in printed.items()
    )
    abstract = _overall_row(modified, (".9855", ".9677", ".9756", ".9743"))
    return (
        Table("yadav2024", "Table 3", rows, note="the recall of ResNet-50 is printed as 94.02 on a 0-1 scale"),
        Table("yadav2024", "abstract", (abstract,)),
    )


def _overall_row(architecture: str, cells: tuple[str, str, str, str], best: str = "") -> Row:
    precision, recall, f1, accuracy = (Decimal(text) for text in cells)
    return Row(architecture, precision=precision, recall=recall, f1=f1, accuracy=accuracy, best=best)


PAPERS: Mapping[str, Paper] = MappingProxyType(
    {
        "aulia2026": Paper(
            key="aulia2026",
            title="Classification of Breast Cancer Ultrasound Images Using Convolutional Neural Network",
            citation=(
                "Aulia (2026). Classification of Breast Cancer Ultrasound Images Using Convolutional Neural Network."
            ),
            data=MappingProxyType(
                {
                    "data set": "BUSI",
                    "images": "417 of 780: 138 benign, 146 malignant, 133 normal",
                    "split": "hold-out 70/15/15: 291 train, 63 validation, 63 test",
                }
            ),
            settings=MappingProxyType(
                {
                    "input": "224 px, pixel values rescaled to 0-1",
                    "augmentation": "rotation up to 15 degrees, zoom 10 %, shift 10 % both ways, horizontal flip "
                    "(section 2.2 also lists vertical flips, shear and brightness; section 3.1 does not)",
                    "head": "GlobalAveragePooling, Dense 128 ReLU, Dropout 0.3, Dense 3 softmax",
                    "learning rate": "1e-4",
                    "batch": "32",
                    "epochs": "up to 50, early stopping, best checkpoint",
                    "classes": "class weights",
                }
            ),
            not_stated=(
                "how the 417 images were drawn",
                "the seed",
                "the momentum",
                "whether the base was frozen (fine-tuning is left to future work, so it probably was)",
            ),
            tables=(*_aulia_counts(), _aulia_accuracies(), _aulia_classes()),
        ),
        "yadav2024": Paper(
            key="yadav2024",
            title="ResNet-101 Empowered Deep Learning for Breast Cancer Ultrasound Image Classification",
            citation=(
                "Yadav (2024). ResNet-101 Empowered Deep Learning for Breast Cancer Ultrasound Image Classification."
            ),
            data=MappingProxyType({"data set": "BUSI", "images": "all 780"}),
            settings=MappingProxyType(
                {
                    "architectures": "ResNet-18, 34, 50, 101, 152 and a modified ResNet-101 with added shortcut "
                    "connections that classifies and segments",
                }
            ),
            not_stated=(
                "the number of test images (in what this package knows of the paper)",
                "over what precision, recall and F1 are averaged (in what this package knows of the paper)",
            ),
            tables=_yadav_tables(),
        ),
    }
)


def paper(key: str) -> Paper:
    """The paper called `key`.

    Raises
    ------
    SonobreastError
        Where there is no such paper; the nearest names are given.
    """
    if key not in PAPERS:
        raise SonobreastError(f"there are no tables of a paper called {key!r}", remedy=nearest(key, PAPERS))
    return PAPERS[key]


def class_counts(key: str) -> dict[str, int] | None:
    """Images in each class and in total **as printed** (Table 1 of Aulia 2026 prints benign 487 for 437).

    Returns
    -------
    dict of str to int, or None
        Keys "benign", "malignant", "normal", "total"; None where the paper prints no such table.
    """
    counts = {row.label: row.count for row in _rows(key, "Table 1") if row.count is not None}
    return counts or None


def split_counts(key: str) -> dict[str, dict[str, int]] | None:
    """Images in each class and subset as printed.

    Returns
    -------
    dict of str to dict of str to int, or None
        Class (or "total") to subset ("train", "validation", "test") to images; None where the paper prints none.
    """
    counts: dict[str, dict[str, int]] = {}
    for row in _rows(key, "Table 2"):
        if row.count is not None:
            counts.setdefault(row.label, {})[row.subset] = row.count
    return counts or None


def table3(key: str, architecture: str, optimizer: str) -> dict[str, float] | None:
    """Accuracy in training, validation and testing.

    Returns
    -------
    dict of str to float, or None
        "train", "validation", "test" to a fraction 0-1 (92.06 % is 0.9206); None where the paper prints none for this
        configuration (Yadav 2024 gives no subsets: see `overall`).
    """
    found = {
        row.subset: float(row.accuracy.scaleb(-2))
        for row in _rows(key, "Table 3")
        if row.accuracy is not None
        and row.subset
        and (row.architecture, row.optimizer) == (architecture, optimizer.lower())
    }
    return found or None


def table4(key: str, architecture: str, optimizer: str) -> dict[str, dict[str, float]] | None:
    """Precision, recall, F1 (fractions 0-1) and support (images) of each class in testing.

    Returns
    -------
    dict of str to dict of str to float, or None
        "benign", "malignant", "normal" to "precision", "recall", "f1", "support"; None where the paper prints none for
        this configuration.
    """
    found: dict[str, dict[str, float]] = {}
    for row in _rows(key, "Table 4"):
        if row.label and (row.architecture, row.optimizer) == (architecture, optimizer.lower()):
            cells = {"precision": row.precision, "recall": row.recall, "f1": row.f1, "support": row.support}
            found[row.label] = {name: float(cell) for name, cell in cells.items() if cell is not None}
    return found or None


def table4_accuracy(key: str, architecture: str, optimizer: str) -> float | None:
    """The accuracy printed under the classes of Table 4, a fraction 0-1 with two decimals; None where none is."""
    for row in _rows(key, "Table 4"):
        if row.accuracy is not None and (row.architecture, row.optimizer) == (architecture, optimizer.lower()):
            return float(row.accuracy)
    return None


def overall(key: str, architecture: str, table: str = "Table 3") -> dict[str, float] | None:
    """Precision, recall, F1 and accuracy over all classes **as printed** (Yadav 2024, "Table 3" or "abstract").

    Returns
    -------
    dict of str to float, or None
        "precision", "recall", "f1", "accuracy" to a fraction 0-1, but for the recall of ResNet-50, which is printed,
        and given here, as 94.02. None where the paper prints none for this architecture.
    """
    architecture = _NAMES_HERE.get(architecture, architecture)
    for row in _rows(key, table):
        if row.architecture == architecture and not row.label and row.f1 is not None:
            cells = {metric: getattr(row, metric) for metric in METRICS}
            return {metric: float(cell) for metric, cell in cells.items() if cell is not None}
    return None


_NAMES_HERE = {"modresnet101": "modified ResNet-101"}  # of recipes -> as printed


def _rows(key: str, name: str) -> tuple[Row, ...]:
    return next((table.rows for table in paper(key).tables if table.name == name), ())
