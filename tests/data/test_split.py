"""No image in two subsets, whole groups, every class everywhere, and exactly the paper's Table 2."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.fake import fake_cases

from sonobreast.config import Data, Split, load_recipe
from sonobreast.data import split as splits
from sonobreast.data.manifest import Manifest
from sonobreast.data.split import adopt, divide, draw, write
from sonobreast.errors import SonobreastError
from sonobreast.records import SUBSETS, Assignment, Case

# Table 2 of Aulia 2026.
TABLE_2 = {
    ("benign", "train"): 96,
    ("benign", "validation"): 21,
    ("benign", "test"): 21,
    ("malignant", "train"): 102,
    ("malignant", "validation"): 22,
    ("malignant", "test"): 22,
    ("normal", "train"): 93,
    ("normal", "validation"): 20,
    ("normal", "test"): 20,
}
BUSI = {"benign": 437, "malignant": 210, "normal": 133}


def table(rows: Sequence[Assignment]) -> dict[tuple[str, str], int]:
    return dict(Counter((r.label, r.subset) for r in rows))


def check(cases: Sequence[Case], rows: Sequence[Assignment], grouped: bool) -> None:
    """What must hold of any division."""
    folds = defaultdict(list)
    for row in rows:
        folds[row.repeat, row.fold].append(row)
    labels = {c.label for c in cases}
    known = {c.image: (c.group, c.label) for c in cases}
    for part in folds.values():
        assert sorted(r.image for r in part) == sorted(known), "each image once"
        assert all((r.group, r.label) == known[r.image] for r in part)
        assert {(r.label, r.subset) for r in part} == {
            (c, s) for c in labels for s in ("train", "validation", "test")
        }, "every class in every subset"
        if grouped:
            where = defaultdict(set)
            for r in part:
                where[r.group].add(r.subset)
            assert all(len(s) == 1 for s in where.values()), "a group in two subsets"


@pytest.mark.parametrize("recipe", ["aulia2026", "aulia2026-normalised"])
def test_table_2(recipe: str) -> None:
    chosen = load_recipe(recipe)
    cases = draw(fake_cases(BUSI), chosen.data)
    assert Counter(c.label for c in cases) == {"benign": 138, "malignant": 146, "normal": 133}
    rows = divide(cases, chosen.split)
    assert table(rows) == TABLE_2
    check(cases, rows, grouped=False)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("grouping", ["none", "group"])
def test_table_2_with_any_seed(seed: int, grouping: str) -> None:
    cases = fake_cases({"benign": 138, "malignant": 146, "normal": 133})
    assert table(divide(cases, Split(seed=seed, grouping=grouping))) == TABLE_2


@pytest.mark.slow
def test_table_2_on_real_busi(real_busi: Manifest) -> None:
    recipe = load_recipe("aulia2026")
    cases = draw(real_busi.cases, recipe.data)
    rows = divide(cases, recipe.split)
    assert len(cases) == 417
    assert table(rows) == TABLE_2
    check(cases, rows, grouped=False)


def test_draw_is_random_and_seeded() -> None:
    cases = fake_cases(BUSI)
    data = load_recipe("aulia2026").data
    first = [c.image for c in draw(cases, data)]
    assert [c.image for c in draw(cases[::-1], data)] == first[::-1]
    other = [c.image for c in draw(cases, data.model_copy(update={"subsample_seed": 1}))]
    assert set(other) != set(first)
    benign = sorted(int(n.split("(")[1].split(")")[0]) for n in first if n.startswith("benign"))
    assert max(benign) > 300, "the draw takes the first images only"
    fewer = draw(cases, Data(classes=data.classes, subsample={**data.subsample, "normal": 20}))
    assert {c.image for c in fewer if c.label == "benign"} == {n for n in first if n.startswith("benign")}


@pytest.mark.parametrize(
    ("data", "said", "remedy"),
    [
        ({"classes": ("benign", "malignnt")}, "'malignnt' is not in the data; did you mean malignant", "data.classes"),
        ({"classes": ("benign",)}, "one class only", "two classes"),
        ({"subsample": {"benign": 500}}, "draws 500 images .* the data have 437", "subsample.benign=437"),
        ({"subsample": {"benign": 0}}, "draws 0 images", "subsample"),
        ({"subsample": {"benine": 5}}, "names 'benine'; did you mean benign", ""),
    ],
)
def test_draw_refuses(data: dict[str, object], said: str, remedy: str) -> None:
    with pytest.raises(SonobreastError, match=said) as caught:
        draw(fake_cases(BUSI), Data(**data))
    assert remedy in caught.value.remedy


def test_classes_left_out() -> None:
    assert {c.label for c in draw(fake_cases(BUSI), Data(classes=("benign", "malignant")))} == {"benign", "malignant"}


counts = st.lists(st.integers(6, 40), min_size=2, max_size=4).map(lambda ns: {f"class{i}": n for i, n in enumerate(ns)})


@given(
    counts=counts,
    size=st.integers(1, 4),
    validation=st.floats(0.1, 0.3),
    test=st.floats(0.1, 0.3),
    seed=st.integers(0, 1000),
    grouping=st.sampled_from(["group", "none"]),
)
@settings(max_examples=20, deadline=None)
def test_any_holdout(
    counts: dict[str, int], size: int, validation: float, test: float, seed: int, grouping: str
) -> None:
    cases = fake_cases(counts, lambda label, i: f"{label}-{i // size}")
    chosen = Split(validation=validation, test=test, seed=seed, grouping=grouping)
    try:
        rows = divide(cases, chosen)
    except SonobreastError:
        if grouping == "none" or size == 1:
            raise
        return
    check(cases, rows, grouped=grouping == "group")
    assert divide(cases[::-1], chosen) == rows
    if size == 1 or grouping == "none":
        for label, n in counts.items():
            of = {s: sum(r.label == label and r.subset == s for r in rows) for s in ("validation", "test")}
            assert of == {"validation": max(1, int(n * validation + 0.5)), "test": max(1, int(n * test + 0.5))}


@given(
    counts=counts,
    size=st.integers(1, 3),
    folds=st.integers(2, 5),
    repeats=st.integers(1, 2),
    seed=st.integers(0, 1000),
    grouping=st.sampled_from(["group", "none"]),
)
@settings(max_examples=8, deadline=None)
@pytest.mark.filterwarnings("ignore:The least populated class")
def test_any_folds(counts: dict[str, int], size: int, folds: int, repeats: int, seed: int, grouping: str) -> None:
    cases = fake_cases(counts, lambda label, i: f"{label}-{i // size}")
    chosen = Split(kind="kfold", folds=folds, repeats=repeats, validation=0.2, seed=seed, grouping=grouping)
    try:
        rows = divide(cases, chosen)
    except SonobreastError:
        assume(False)
    check(cases, rows, grouped=grouping == "group")
    tested = Counter((r.repeat, r.image) for r in rows if r.subset == "test")
    assert tested == {(k, c.image): 1 for k in range(repeats) for c in cases}
    assert {(r.repeat, r.fold) for r in rows} == {(k, f) for k in range(repeats) for f in range(folds)}
    assert divide(cases[::-1], chosen) == rows


def test_seeds_and_repeats_differ() -> None:
    cases = fake_cases({"benign": 30, "normal": 30})

    def tested(**options: object) -> set[str]:
        return {r.image for r in divide(cases, Split(**options)) if r.subset == "test" and r.fold == 0}

    assert tested(seed=0) == tested(seed=0)
    assert tested(seed=0) != tested(seed=1)
    rows = divide(cases, Split(kind="kfold", repeats=2))
    first, second = ({r.image for r in rows if (r.repeat, r.fold, r.subset) == (k, 0, "test")} for k in (0, 1))
    assert first != second


def test_groups_of_mixed_labels_stay_whole() -> None:
    """As in BUSI, where a benign and a malignant picture can be the same."""
    cases = fake_cases({"benign": 40, "malignant": 30}, lambda label, i: f"twins-{i}" if i < 10 else f"{label}-{i}")
    check(cases, divide(cases, Split()), grouped=True)
    check(cases, divide(cases, Split(kind="kfold")), grouped=True)


def test_a_group_of_half_of_the_data() -> None:
    cases = fake_cases({"benign": 40, "malignant": 40}, lambda label, i: "huge" if i < 20 else f"{label}-{i}")
    rows = divide(cases, Split())
    check(cases, rows, grouped=True)
    assert {r.subset for r in rows if r.group == "huge"} == {"train"}


def test_a_group_of_nearly_all() -> None:
    cases = fake_cases({"benign": 40, "malignant": 40}, lambda label, i: "huge" if i < 39 else f"{label}-{i}")
    with pytest.raises(SonobreastError, match="2 group") as caught:
        divide(cases, Split())
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("n", "options", "said"),
    [
        (2, {}, "has 2 image.* needs at least 3"),
        (1, {"grouping": "none"}, "has 1 image"),
        (4, {"kind": "kfold", "folds": 5}, "into 5 folds needs at least 5"),
    ],
)
def test_too_few_images(n: int, options: dict[str, object], said: str) -> None:
    with pytest.raises(SonobreastError, match=said) as caught:
        divide(fake_cases({"benign": 50, "normal": n}), Split(**options))
    assert "'normal'" in caught.value.what
    assert "add images" in caught.value.remedy
    assert ("folds" in caught.value.remedy) == ("folds" in options)


def test_three_images_are_enough() -> None:
    cases = fake_cases({"benign": 3, "normal": 3})
    check(cases, divide(cases, Split()), grouped=True)


# split.csv


def test_split_csv_reads_back(tmp_path: Path) -> None:
    rows = divide(fake_cases({"benign, odd": 10, "normal": 10}), Split(kind="kfold", repeats=2))
    splits.write(tmp_path / "split.csv", rows)
    assert splits.read(tmp_path / "split.csv") == rows


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (",train,", ",training,"),
        ("0,0,", "zero,0,"),
        (",benign,1\n", "\n"),
        (",benign,1\n", ",benign,1,more,cells\n"),
        ("repeat,", "times,"),
        (",1\n", ",99\n"),
    ],
)
def test_damaged_split_csv(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "split.csv"
    splits.write(file, divide(fake_cases({"benign": 10, "normal": 10}), Split()))
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SonobreastError) as caught:
        splits.read(file)
    assert caught.value.file == str(file)
    assert caught.value.remedy


# A division of one's own


def own_split(path: Path, rows: Sequence[tuple[str, ...]], header: tuple[str, ...] = ("image", "subset")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def three_of_each(group: Callable[[str, int], str] | None = None) -> list[Case]:
    return fake_cases({"benign": 3, "malignant": 3}, group)


def good(cases: Sequence[Case]) -> list[tuple[str, str]]:
    return [(c.image, SUBSETS[i % 3]) for i, c in enumerate(cases)]


def test_own_division_is_taken_as_it_is(tmp_path: Path) -> None:
    cases = three_of_each()
    used, rows = adopt(
        own_split(tmp_path / "s.csv", good(cases)), [*cases, *fake_cases({"normal": 2})], grouping="group"
    )
    assert [c.image for c in used] == [c.image for c in cases], "images that the table does not name are not used"
    assert {(r.image, r.subset) for r in rows} == set(good(cases))
    write(tmp_path / "split.csv", rows)
    assert adopt(tmp_path / "split.csv", cases, grouping="group")[1] == rows, "our own split.csv is one"


def test_own_folds(tmp_path: Path) -> None:
    cases = three_of_each()
    table = [(c.image, SUBSETS[(i + fold) % 3], str(fold)) for fold in range(3) for i, c in enumerate(cases)]
    _, rows = adopt(own_split(tmp_path / "s.csv", table, ("image", "subset", "fold")), cases, grouping="group")
    assert {r.fold for r in rows} == {0, 1, 2}
    assert len(rows) == 18


@pytest.mark.parametrize("grouping", ["group", "none"])
def test_a_patient_on_both_sides_is_refused_and_named(tmp_path: Path, grouping: str) -> None:
    cases = three_of_each()
    cases[0] = cases[0].model_copy(update={"patient": "P17", "group": "P17"})
    cases[1] = cases[1].model_copy(update={"patient": "P17", "group": "P17"})
    with pytest.raises(SonobreastError, match=r"patient 'P17' is on both sides.*benign \(1\).*train.*benign \(2\)"):
        adopt(own_split(tmp_path / "s.csv", good(cases)), cases, grouping=grouping)


def test_a_group_on_both_sides_is_refused_unless_the_recipe_divides_image_by_image(tmp_path: Path) -> None:
    cases = three_of_each(lambda label, i: f"{label} {i // 2}")
    file = own_split(tmp_path / "s.csv", good(cases))
    with pytest.raises(SonobreastError, match="group 'benign 0' is on both sides"):
        adopt(file, cases, grouping="group")
    assert adopt(file, cases, grouping="none")[1]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda rows: [*rows, ("benign/nowhere.png", "train")], r"line 8 .*nowhere"),
        (lambda rows: [*rows, rows[0]], "again"),
        (lambda rows: [(rows[0][0], "holdout"), *rows[1:]], "'holdout' is none of train, validation, test"),
        (lambda rows: [r for r in rows if r[1] != "test"], "test subset has no image of the class 'benign'"),
        (lambda rows: [], "no rows"),
    ],
)
def test_divisions_that_cannot_be_meant(
    tmp_path: Path, change: Callable[[list[tuple[str, str]]], list[tuple[str, str]]], what: str
) -> None:
    cases = three_of_each()
    with pytest.raises(SonobreastError, match=what):
        adopt(own_split(tmp_path / "s.csv", change(good(cases))), cases, grouping="group")


def test_a_group_that_no_fold_can_hold_is_refused() -> None:
    cases = fake_cases({"benign": 30, "malignant": 30}, lambda label, i: f"{label} {max(0, i - 14)}")
    with pytest.raises(SonobreastError, match=r"group 'benign 0' has 15 of the 60 images, each of 5 folds holds 12"):
        divide(cases, Split(kind="kfold", folds=5))
    assert divide(cases, Split(kind="kfold", folds=3))
    assert divide(cases, Split(kind="kfold", folds=5, grouping="none"))
