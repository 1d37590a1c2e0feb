"""The papers' tables are what the papers print, and the checker finds what cannot be in them, and nothing else."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
import sys
from decimal import ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sonobreast.errors import SonobreastError
from sonobreast.evaluation import published
from sonobreast.evaluation.plausibility import check, check_csv, check_paper
from sonobreast.evaluation.published import PAPERS, Row, Table
from sonobreast.evaluation.rounding import (
    ClassFigures,
    counts_in,
    harmonic,
    matrix_exists,
    smallest_mcnemar_p,
    span,
    wilson,
)
from sonobreast.evaluation.table_findings import CODES, SEVERITIES, Finding, render_text

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "table.csv"


def accused(findings: list[Finding]) -> list[tuple[str, str, str, str]]:
    return [(f.code, f.table, f.row, f.column) for f in findings if f.severity in ("error", "warning")]


def problems(findings: list[Finding]) -> list[str]:
    return [f.code for f in findings if f.severity in ("error", "warning")]


def csv_file(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


class TestData:
    def test_counts_are_as_printed(self) -> None:
        assert published.class_counts("aulia2026") == {"benign": 487, "malignant": 210, "normal": 133, "total": 780}
        assert published.split_counts("aulia2026") == {
            "benign": {"train": 96, "validation": 21, "test": 21},
            "malignant": {"train": 102, "validation": 22, "test": 22},
            "normal": {"train": 93, "validation": 20, "test": 20},
            "total": {"train": 291, "validation": 63, "test": 63},
        }
        assert published.class_counts("yadav2024") is None
        assert published.split_counts("yadav2024") is None

    def test_figures_are_fractions(self) -> None:
        assert published.table3("aulia2026", "ResNet50V2", "sgdm") == {
            "train": 0.8522,
            "validation": 0.9365,
            "test": 0.9206,
        }
        assert published.table4("aulia2026", "MobileNetV2", "SGDM") == {
            "benign": {"precision": 0.93, "recall": 0.67, "f1": 0.78, "support": 21},
            "malignant": {"precision": 0.72, "recall": 0.95, "f1": 0.82, "support": 22},
            "normal": {"precision": 0.95, "recall": 0.90, "f1": 0.92, "support": 20},
        }
        assert published.table4_accuracy("aulia2026", "MobileNetV2", "sgdm") == 0.84
        assert published.table4_accuracy("aulia2026", "ResNet50V2", "rmsprop") is None  # not printed
        assert published.overall("yadav2024", "ResNet-50") == {
            "precision": 0.9308,
            "recall": 94.02,
            "f1": 0.9405,
            "accuracy": 0.9274,
        }
        assert published.overall("yadav2024", "modified ResNet-101", "abstract") == {
            "precision": 0.9855,
            "recall": 0.9677,
            "f1": 0.9756,
            "accuracy": 0.9743,
        }

    def test_what_is_not_printed_is_none(self) -> None:
        assert published.table3("aulia2026", "ResNet-18", "adam") is None
        assert published.table3("yadav2024", "ResNet-18", "") is None
        assert published.table4("yadav2024", "ResNet-18", "") is None
        assert published.overall("yadav2024", "ResNet50V2") is None
        with pytest.raises(SonobreastError, match="aulia2026"):
            published.class_counts("aulia")

    def test_every_configuration_is_there(self) -> None:
        for architecture, optimizer in itertools.product(("ResNet50V2", "MobileNetV2"), ("adam", "rmsprop", "sgdm")):
            assert set(published.table3("aulia2026", architecture, optimizer) or {}) == {"train", "validation", "test"}
            assert len(published.table4("aulia2026", architecture, optimizer) or {}) == 3
        for name in ("ResNet-18", "ResNet-34", "ResNet-50", "ResNet-101", "ResNet-152", "modified ResNet-101"):
            assert published.overall("yadav2024", name)

    def test_import_is_light(self) -> None:
        code = (
            "import sys; import sonobreast.evaluation.published, sonobreast.evaluation.plausibility; "
            "print([m for m in ('pandas', 'scipy', 'numpy', 'statsmodels', 'torch') if m in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestPapers:
    """The whole list for each paper: every named inconsistency is found, and no more."""

    def test_aulia(self) -> None:
        findings = check_paper("aulia2026")
        best, tied = "ResNet50V2 + sgdm, test", "MobileNetV2 + sgdm, test"
        assert sorted(accused(findings)) == sorted(
            [
                ("counts-do-not-sum", "Table 1", "total", "count"),
                ("recalls-contradict-accuracy", "Table 3", tied, "accuracy"),
                ("tables-disagree", "Table 4", tied, "accuracy"),
                ("accuracy-no-count", "Table 3", "MobileNetV2 + adam, train", "accuracy"),
                ("accuracy-no-count", "Table 3", "MobileNetV2 + sgdm, train", "accuracy"),
                ("tie-called-best", "Table 3", tied, "accuracy"),
                ("cannot-be-significant", "Table 3", best, "accuracy"),
                ("cannot-be-significant", "Table 3", tied, "accuracy"),
            ]
        )
        said = {(f.code, f.row): f.message for f in findings}
        assert "487 + 210 + 133 = 830" in said["counts-do-not-sum", "total"]
        assert "benign 437 for 487" in said["counts-do-not-sum", "total"]
        assert "14 + 21 + 18 correct: 53/63 = 84.13 %" in said["recalls-contradict-accuracy", tied]
        assert "252/291 = 86.60 %" in said["accuracy-no-count", "MobileNetV2 + adam, train"]
        assert "ResNet50V2 + adam, test (3 images, p >= 0.25)" in said["cannot-be-significant", best]
        assert "MobileNetV2 + adam" not in said["cannot-be-significant", best]  # six images: p may reach 0.031
        assert "(58/63): 82.7-96.6 %" in said["no-interval", best]

    def test_yadav(self) -> None:
        findings = check_paper("yadav2024")
        modified = "modified ResNet-101"
        assert sorted(accused(findings)) == sorted(
            [
                ("out-of-scale", "Table 3", "ResNet-50", "recall"),
                *(("f1-above-mean", "Table 3", f"ResNet-{depth}", "f1") for depth in (34, 50, 101, 152)),
                ("best-is-not-best", "Table 3", modified, "accuracy"),
                ("best-is-not-best", "Table 3", modified, "f1"),
                ("tables-disagree", "abstract", modified, "recall"),
                ("tables-disagree", "abstract", modified, "accuracy"),
            ]
        )
        assert {f.severity for f in findings if f.column == "accuracy"} == {"error"}
        # No test size is known, so nothing is said of counts; that is said.
        assert [f.code for f in findings if f.severity == "skipped"] == ["not-checked", "not-checked"]

    @pytest.mark.parametrize("key", PAPERS)
    def test_text(self, key: str) -> None:
        findings = check_paper(key)
        text = render_text(findings)
        assert all(f.code in text and f.code in CODES and f.severity in SEVERITIES for f in findings)
        assert max(map(len, text.splitlines())) <= 110
        assert text.index("error ") < text.index("warning ")
        assert text.splitlines()[-1].startswith(f"{sum(f.severity == 'error' for f in findings)} errors, ")
        assert "Nothing found" in render_text([])


def printed(value: Fraction, decimals: int, rounding: str) -> Decimal:
    """A fraction as a paper prints it."""
    exact = Decimal(value.numerator) / Decimal(value.denominator)
    return exact.quantize(Decimal(1).scaleb(-decimals), rounding)


def ratio(a: int, b: int) -> Fraction:
    return Fraction(a, b) if b else Fraction(0)  # scikit-learn's zero_division=0


def table_of(matrix: np.ndarray, decimals: int = 2, percent: bool = False, rounding: str = ROUND_HALF_EVEN) -> Table:
    """The classification report of a confusion matrix (rows true, columns predicted), rounded for print."""

    def show(value: Fraction) -> Decimal:
        return printed(value * (100 if percent else 1), decimals, rounding)

    k, size = len(matrix), int(matrix.sum())
    hits = [int(matrix[i, i]) for i in range(k)]
    supports, called = [int(v) for v in matrix.sum(1)], [int(v) for v in matrix.sum(0)]
    figures = [
        (ratio(hits[i], called[i]), ratio(hits[i], supports[i]), ratio(2 * hits[i], supports[i] + called[i]))
        for i in range(k)
    ]
    rows = [
        Row("net", "adam", "test", f"class {i}", show(p), show(r), show(f), support=supports[i])
        for i, (p, r, f) in enumerate(figures)
    ]
    macro = [sum((figure[m] for figure in figures), Fraction(0)) / k for m in range(3)]
    weighted = [sum((f[m] * s for f, s in zip(figures, supports, strict=True)), Fraction(0)) / size for m in range(3)]
    for name, average in (("macro avg", macro), ("weighted avg", weighted)):
        precision, recall, f1 = (show(value) for value in average)
        rows.append(Row("net", "adam", "test", name, precision, recall, f1))
    rows.append(Row("net", "adam", "test", accuracy=show(ratio(sum(hits), size)), n=size))
    columns = ("precision", "recall", "f1", "accuracy")
    return Table("someone", "Table 1", tuple(rows), percent=frozenset(columns if percent else ()))


@st.composite
def matrices(draw: st.DrawFn) -> np.ndarray:
    k = draw(st.integers(2, 4))
    high = draw(st.sampled_from([2, 12, 60, 3000]))
    cells = draw(st.lists(st.integers(0, high), min_size=k * k, max_size=k * k))
    matrix = np.array(cells).reshape(k, k)
    matrix[np.arange(k), np.arange(k)] += draw(st.integers(1, high))
    return matrix


class TestNoFalseAccusation:
    @settings(max_examples=200, deadline=None)
    @given(
        matrices(),
        st.integers(1, 4),
        st.booleans(),
        st.sampled_from([ROUND_HALF_EVEN, ROUND_HALF_UP]),
    )
    def test_a_real_confusion_matrix_is_never_accused(
        self, matrix: np.ndarray, decimals: int, percent: bool, rounding: str
    ) -> None:
        assert accused(check(table_of(matrix, decimals, percent, rounding))) == []

    @settings(max_examples=100, deadline=None)
    @given(matrices())
    def test_nor_with_all_digits_of_a_float(self, matrix: np.ndarray) -> None:
        table = table_of(matrix, 17)
        rows = tuple(
            Row(
                *(row.architecture, row.optimizer, row.subset, row.label),
                *(None if v is None else Decimal(repr(float(v))) for v in (row.precision, row.recall, row.f1)),
                accuracy=None if row.accuracy is None else Decimal(repr(float(row.accuracy))),
                support=row.support,
                n=row.n,
            )
            for row in table.rows
        )
        assert accused(check(Table("someone", "Table 1", rows))) == []

    def test_scikit_learns_report_as_a_file(self, tmp_path: Path) -> None:
        from sklearn.metrics import classification_report

        rng = np.random.default_rng(3)
        truth = rng.integers(0, 3, 63)
        called = np.where(rng.random(63) < 0.8, truth, rng.integers(0, 3, 63))
        report = classification_report(truth, called, output_dict=True)
        lines = ["class,precision,recall,f1-score,support"]
        for name, figures in report.items():
            if name == "accuracy":
                lines.append(f"accuracy,,,{figures:.2f},63")
            else:
                cells = [f"{figures[m]:.2f}" for m in ("precision", "recall", "f1-score")]
                lines.append(",".join([name, *cells, f"{figures['support']:.0f}"]))
        findings = check_csv(csv_file(tmp_path, "\n".join(lines)))
        assert problems(findings) == []
        assert "no-interval" in [f.code for f in findings]  # so the accuracy and its n were understood
        lines[2] = lines[2].replace("0.", "0.1", 1)[: len(lines[2])]
        assert problems(check_csv(csv_file(tmp_path, "\n".join(lines))))


def small(matrix: tuple[tuple[int, ...], ...], **changes: dict[str, object]) -> Table:
    """The table of a matrix with cells replaced: small(m, benign={"recall": Decimal("0.5")})."""
    from dataclasses import replace

    table = table_of(np.array(matrix))
    names = {"class 0": "benign", "class 1": "malignant", "class 2": "normal", "": "overall"}
    rows = tuple(replace(row, **changes.get(names.get(row.label, ""), {})) for row in table.rows)
    return replace(table, rows=tuple(row for row in rows if "avg" not in row.label))


GOOD = ((18, 2, 1), (1, 21, 0), (1, 1, 18))


class TestEachCheckCanFail:
    def test_the_unchanged_table_passes(self) -> None:
        assert problems(check(small(GOOD))) == []

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"overall": {"accuracy": Decimal("0.92")}}, "recalls-contradict-accuracy"),
            ({"benign": {"recall": Decimal("0.88"), "f1": None}}, "recall-no-count"),
            ({"benign": {"precision": Decimal("0.93"), "f1": None}}, "precision-no-count"),
            ({"benign": {"f1": Decimal("0.83")}}, "f1-not-harmonic"),
            ({"benign": {"f1": Decimal("0.97")}}, "f1-above-mean"),
            ({"benign": {"precision": Decimal("90.0")}}, "out-of-scale"),
            ({"benign": {"precision": Decimal("0.78"), "f1": Decimal("0.82")}}, "no-confusion-matrix"),
            ({"overall": {"n": 62, "accuracy": Decimal("0.90")}}, "supports-differ"),
        ],
    )
    def test_cells(self, changes: dict[str, dict[str, object]], code: str) -> None:
        assert problems(check(small(GOOD, **changes))) == [code]

    def test_accuracy_that_is_no_count(self) -> None:
        row = Row("net", accuracy=Decimal("0.895"), n=63)
        [finding] = [f for f in check(Table("someone", "Table 1", (row,))) if f.severity == "error"]
        assert finding.code == "accuracy-no-count"
        assert "56/63 = 88.89 % and 57/63 = 90.48 %" in finding.message

    def test_predicted_totals_are_named(self) -> None:
        changes: dict[str, dict[str, object]] = {"benign": {"precision": Decimal("0.78"), "f1": Decimal("0.82")}}
        [finding] = [f for f in check(small(GOOD, **changes)) if f.code == "no-confusion-matrix"]
        assert "class 0: 23, class 1: 24, class 2: 19; together 66, not 63" in finding.message

    def test_average_f1_above_the_harmonic_mean(self) -> None:
        row = Row("net", precision=Decimal("0.50"), recall=Decimal("0.90"), f1=Decimal("0.69"))
        assert problems(check(Table("someone", "Table 1", (row,)))) == ["f1-above-harmonic"]
        below = Row("net", precision=Decimal("0.50"), recall=Decimal("0.90"), f1=Decimal("0.60"))
        assert problems(check(Table("someone", "Table 1", (below,)))) == []

    def test_counts(self) -> None:
        rows = [Row(label=label, count=count) for label, count in (("a", 437), ("b", 210), ("c", 133), ("total", 780))]
        assert problems(check(Table("someone", "Table 1", tuple(rows)))) == []
        rows[1] = Row(label="b", count=220)
        [finding] = check(Table("someone", "Table 1", tuple(rows)))
        assert finding.code == "counts-do-not-sum"
        assert "b 210 for 220" in finding.message
        assert "a 427 for 437" in finding.message  # it cannot know which

    def test_supports_against_the_split(self) -> None:
        split = Table("someone", "Table 2", (Row(label="class 0", subset="test", count=22),))
        assert problems(check(small(GOOD), split)) == ["supports-differ"]

    def test_best_and_tie(self) -> None:
        def rows(*accuracies: str, n: int | None = None) -> Table:
            return Table(
                "someone",
                "Table 1",
                tuple(
                    Row(f"net {i}", accuracy=Decimal(a), n=n, best="" if i else "all") for i, a in enumerate(accuracies)
                ),
            )

        assert problems(check(rows("0.90", "0.80"))) == []
        assert problems(check(rows("0.90", "0.91"))) == ["best-is-not-best"]
        assert problems(check(rows("0.90", "0.90"))) == ["tie-called-best"]
        assert problems(check(rows("0.9", "0.90"))) == ["tie-called-best"]
        assert problems(check(rows("0.9", "0.92"))) == []  # 0.9 may stand for 0.94
        assert problems(check(rows("0.90", "0.80", n=60))) == []  # six images: p may reach 0.031
        assert problems(check(rows("0.90", "0.85", n=60))) == ["cannot-be-significant"]

    def test_interval_is_asked_for_once(self) -> None:
        row = Row("net", accuracy=Decimal("0.92"), n=63)
        bare, given_ = (Table("someone", "Table 1", (Row(**{**row.__dict__, "interval": i}),)) for i in (False, True))
        assert [f.code for f in check(bare)] == ["no-interval"]
        assert check(given_) == []

    def test_what_cannot_be_checked_is_said(self) -> None:
        one_class = Row("net", label="malignant", recall=Decimal("0.95"), support=22)
        whole = Row("net", accuracy=Decimal("0.87"), n=63, interval=True)
        findings = check(Table("someone", "Table 1", (one_class, whole)))
        assert [f.code for f in findings] == ["not-checked"]
        assert "not all images" in findings[0].message


class TestNumbers:
    def test_span(self) -> None:
        assert span(Decimal("0.86")) == (Fraction(855, 1000), Fraction(865, 1000))
        assert span(Decimal("87.30"), percent=True) == (Fraction("0.87295"), Fraction("0.87305"))
        assert span(Decimal("1.00")) == (Fraction("0.995"), Fraction(1))

    def test_every_accuracy_of_table_3(self) -> None:
        none = [
            str(row.accuracy)
            for table in PAPERS["aulia2026"].tables
            for row in table.rows
            if table.name == "Table 3" and row.accuracy and not counts_in(span(row.accuracy, True), row.n or 0)
        ]
        assert none == ["86.67", "84.49"]

    def test_wilson(self) -> None:
        from statsmodels.stats.proportion import proportion_confint

        for k, n in ((58, 63), (0, 10), (10, 10), (437, 780)):
            assert wilson(k, n) == pytest.approx(proportion_confint(k, n, method="wilson"), abs=1e-12)

    def test_smallest_mcnemar_p(self) -> None:
        from statsmodels.stats.contingency_tables import mcnemar

        for d in range(8):
            tables = [[[40, d + extra], [extra, 5]] for extra in range(6)]
            assert smallest_mcnemar_p(d) == pytest.approx(min(mcnemar(t, exact=True).pvalue for t in tables))

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=3, max_size=3), st.data())
    def test_matrix_exists_against_all_matrices(self, called: list[tuple[int, int, int]], data: st.DataObject) -> None:
        """Exact figures, some taken from another matrix with the same supports, against trying every matrix."""
        supports = [data.draw(st.integers(1, 4)) for _ in range(3)]
        rows = [[c for c in itertools.product(range(s + 1), repeat=3) if sum(c) == s] for s in supports]
        first, second = ([data.draw(st.sampled_from(row)) for row in rows] for _ in range(2))

        def figures(matrix: list[tuple[int, ...]]) -> list[tuple[Fraction | None, Fraction, Fraction]]:
            sums = [sum(row[i] for row in matrix) for i in range(3)]
            return [
                (
                    Fraction(matrix[i][i], sums[i]) if sums[i] else None,
                    Fraction(matrix[i][i], supports[i]),
                    Fraction(2 * matrix[i][i], sums[i] + supports[i]),
                )
                for i in range(3)
            ]

        target = [
            (a[0] if data.draw(st.booleans()) else b[0], a[1], b[2] if data.draw(st.booleans()) else a[2])
            for a, b in zip(figures(first), figures(second), strict=True)
        ]

        def fits(matrix: list[tuple[int, ...]]) -> bool:
            # A printed precision asks for at least one image called so, unless it is 0.
            return all(
                (p is None or (g[0] if g[0] is not None else Fraction(0)) == p) and g[1] == r and g[2] == f
                for g, (p, r, f) in zip(figures(matrix), target, strict=True)
            )

        expected = any(fits(list(matrix)) for matrix in itertools.product(*rows))
        spans = [
            ClassFigures(s, None if p is None else (p, p), (r, r), (f, f))
            for s, (p, r, f) in zip(supports, target, strict=True)
        ]
        assert matrix_exists(spans) is expected

    @given(st.fractions(0, 1), st.fractions(0, 1))
    def test_harmonic_is_at_most_the_mean(self, p: Fraction, r: Fraction) -> None:
        assert min(p, r) <= harmonic(p, r) <= (p + r) / 2


class TestFiles:
    def test_the_example(self) -> None:
        findings = check_csv(EXAMPLE)
        assert "(0.9100 + 1.0000) / 2 = 0.9550" in render_text(findings)
        assert problems(findings) == ["f1-above-mean", "recalls-contradict-accuracy", "cannot-be-significant"]
        assert [f.column for f in findings if f.code == "scale-read"] == ["precision", "recall", "f1", "accuracy"]

    def test_aulia_from_a_file_long_and_wide(self, tmp_path: Path) -> None:
        """Tables 3 and 4 typed by a reader give what the stored ones give."""
        wide = ["Table;Model;Optimizer;Training;Validation;Testing;n_train;n_validation;n_test;best"]
        long = ["table,model,optimiser,class,Precision,Sensitivity,F1-Score,support,accuracy"]
        for row in PAPERS["aulia2026"].tables[3].rows:
            cells = [row.architecture, row.optimizer, row.label]
            numbers = [row.precision, row.recall, row.f1, row.support, row.accuracy]
            long.append(",".join(["Table 4", *cells, *("" if v is None else str(v) for v in numbers)]))
        table3 = PAPERS["aulia2026"].tables[2].rows
        for train, validation, test in zip(table3[::3], table3[1::3], table3[2::3], strict=True):
            cells = ["Table 3", train.architecture, train.optimizer]
            cells += [str(r.accuracy).replace(".", ",") for r in (train, validation, test)]
            best = {"all": "yes"}.get(test.best, test.best)
            wide.append(";".join([*cells, "291", "63", "63", best]))
        found3 = check_csv(csv_file(tmp_path, "\n".join(wide)))
        stored = check(PAPERS["aulia2026"].tables[2])
        assert sorted((code, row.split(" (line")[0]) for code, _, row, _ in accused(found3)) == sorted(
            (code, row) for code, _, row, _ in accused(stored)
        )
        assert problems(check_csv(csv_file(tmp_path, "\n".join(long)))) == []  # Table 4 alone is consistent

    def test_two_tables_in_one_file(self, tmp_path: Path) -> None:
        text = "table,model,accuracy\nabstract,net,97.43%\nTable 3,net,97.56%\n"
        assert problems(check_csv(csv_file(tmp_path, text))) == ["tables-disagree"]

    def test_plain_n_beside_subsets_is_the_test_set(self, tmp_path: Path) -> None:
        text = "model,train,test,n\nnet,86.67,92.06,63\n"
        findings = check_csv(csv_file(tmp_path, text))
        assert problems(findings) == []
        assert any("58/63" in f.message for f in findings)

    def test_classes_side_by_side(self, tmp_path: Path) -> None:
        text = (
            "model,precision_benign,recall_benign,support_benign,precision_malignant,recall_malignant,"
            "support_malignant,accuracy\nnet,90.0 %,81.8 %,22,82.6 %,90.5 %,21,{}\n"
        )
        assert problems(check_csv(csv_file(tmp_path, text.format("0.86")))) == []
        assert problems(check_csv(csv_file(tmp_path, text.format("0.91")))) == ["recalls-contradict-accuracy"]

    def test_counts(self, tmp_path: Path) -> None:
        one = "class,count\nbenign,487\nmalignant,210\nnormal,133\ntotal,780\n"
        assert problems(check_csv(csv_file(tmp_path, one))) == ["counts-do-not-sum"]
        wide = "class,train,validation,test,total\nbenign,96,21,21,138\nnormal,93,20,20,{}\ntotal,189,41,41,271\n"
        assert problems(check_csv(csv_file(tmp_path, wide.format(133)))) == []
        assert problems(check_csv(csv_file(tmp_path, wide.format(134)))) == ["counts-do-not-sum"] * 2

    def test_scale_of_a_column(self, tmp_path: Path) -> None:
        text = "model,recall,notes\na,.91,x\nb,94.02,y\nc,.95,z\n"
        findings = check_csv(csv_file(tmp_path, text))
        assert [(f.code, f.column) for f in findings][:3] == [
            ("column-ignored", "notes"),
            ("scale-read", "recall"),
            ("out-of-scale", "recall"),
        ]
        assert "fractions (0-1): 1 of 3 values lie above 1" in findings[1].message

    def test_accuracy_of_each_class_is_left_out(self, tmp_path: Path) -> None:
        text = "model,class,recall,support,accuracy\na,benign,.90,20,.95\na,normal,.80,20,.93\n"
        assert problems(check_csv(csv_file(tmp_path, text))) == []

    def test_byte_order_mark_blank_lines_and_trailing_separators(self, tmp_path: Path) -> None:
        path = tmp_path / "excel.csv"
        path.write_bytes("\ufeffmodel;accuracy;n;;\r\n\r\nnet;92,06;63;;\r\n;;;;\r\n".encode())
        findings = check_csv(path)
        assert problems(findings) == []
        assert any("58/63" in f.message for f in findings)

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("", "the file is empty"),
            (" \n\n", "the file is empty"),
            ("model,accuracy\n", "no lines"),
            ("model,remark\nnet,good\n", "no column holds figures"),
            ("model,acuracy\nnet,0.9\n", "did you mean accuracy"),
            ("model,accuracy\nnet,\n", "no figures"),
            ("model,accuracy\nnet,good\n", "'good' in column 'accuracy', line 2, is no number"),
            ("model,accuracy\nnet,0.92 ± 0.01\n", "columns of its own"),
            ("model,accuracy\nnet,inf\n", "is no number"),
            ("model,accuracy\nnet,1e-999999999\n", "is no number"),
            ("model,accuracy,n\nnet,0.9,62.5\n", "no number of images"),
            ("model,accuracy,n\nnet,0.9,0\n", "no number of images"),
            ("model,class,recall,support\nnet,a,0.9,-3\n", "no number of images"),
            ("model,accuracy\nnet,87,30\n", "line 2 has 3 cells, the header 2"),
            ("model,accuracy\nnet,0.9\nnet,0.8\n", "lines 2 and 3"),
            ("model,accuracy,accuracy\nnet,0.9,0.8\n", "appears twice"),
            ("model,accuracy,acc\nnet,0.9,0.8\n", "mean the same"),
            ("model,subset,accuracy\nnet,hidden,0.9\n", "is no subset"),
            ("model,accuracy,best\nnet,0.9,perhaps\n", "called best"),
            ("class,recall,n\na,0.9,20\nb,0.8,30\n", "n differs"),
            ("model,class,recall,accuracy\nnet,a,0.9,0.9\nnet,,0.9,0.8\n", "two accuracies"),
        ],
    )
    def test_bad_input(self, tmp_path: Path, text: str, match: str) -> None:
        path = csv_file(tmp_path, text)
        with pytest.raises(SonobreastError, match=match) as caught:
            check_csv(path)
        assert caught.value.file == str(path)
        assert caught.value.remedy

    def test_no_file_folder_and_binary(self, tmp_path: Path) -> None:
        with pytest.raises(SonobreastError, match="no such file"):
            check_csv(tmp_path / "none.csv")
        with pytest.raises(SonobreastError, match="folder"):
            check_csv(tmp_path)
        for raw in (b"PK\x03\x04\x00\x00", b"\xff\xfem\x00o\x00", b"model,accuracy\nn\xe9t,0.9\n"):
            path = tmp_path / "binary.csv"
            path.write_bytes(raw)
            with pytest.raises(SonobreastError, match="not a text file"):
                check_csv(path)

    @settings(max_examples=150, deadline=None)
    @given(st.text(alphabet=st.sampled_from('model,accuracy\n\r;\t"0.9%-n/a class x'), max_size=60))
    def test_any_text_is_read_or_refused(self, text: str) -> None:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "table.csv"
            path.write_text("model,class,accuracy,recall,n\n" + text, encoding="utf-8")
            with contextlib.suppress(SonobreastError):
                render_text(check_csv(path))
