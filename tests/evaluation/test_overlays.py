"""Images are chosen by rule, and the figure shows both outlines where they are."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.contour import QuadContourSet
from tests.tables import masks, predictions

from sonobreast.evaluation.overlays import Chosen, Overlay, caption, choose, overlays_name, overlays_plot
from sonobreast.evaluation.plots import png


def table(lesions: int, empty: int = 4) -> pd.DataFrame:
    """So many lesions with different Dice, the others without a lesion; none not outlined."""
    found = masks(predictions(images=lesions + empty)).sort_values("image").reset_index(drop=True)
    is_lesion = np.arange(len(found)) < lesions
    dice = np.random.default_rng(0).permutation(np.linspace(0.1, 0.9, lesions)) if lesions else np.zeros(0)
    return found.assign(
        truth=np.where(is_lesion, "lesion", "empty"),
        dice=[*dice, *[np.nan] * empty],
        true_area_px=np.where(is_lesion, 100.0, 0.0),
        predicted_area_px=np.where(is_lesion, 90, 10 * np.arange(len(found))),
        false_positive_share=np.where(is_lesion, np.nan, np.arange(len(found)) / 1000),
    )


def test_best_median_worst_and_the_largest_false_positive() -> None:
    rows = table(21)
    chosen = choose(rows)
    assert [c.kind for c in chosen] == [k for k in ("best", "median", "worst") for _ in range(3)] + ["false positive"]
    ranked = rows["dice"].dropna().sort_values(ascending=False).tolist()
    assert [c.figure for c in chosen[:9]] == [*ranked[:3], *ranked[9:12], *ranked[-3:]]
    assert (chosen[9].image, chosen[9].figure, chosen[9].area) == ("image 024", 0.024, 240)
    assert [c.figure for c in choose(rows.sample(frac=1, random_state=1))] == [c.figure for c in chosen]


@pytest.mark.parametrize(("lesions", "kinds"), [(0, ""), (1, "b"), (2, "bw"), (3, "bmw"), (5, "bmw"), (8, "bbmmww")])
def test_of_few_lesions_none_is_shown_twice(lesions: int, kinds: str) -> None:
    chosen = [c for c in choose(table(lesions)) if c.kind != "false positive"]
    assert "".join(c.kind[0] for c in chosen) == kinds
    assert len({c.image for c in chosen}) == len(chosen)
    if lesions > 1:
        assert chosen[0].figure == table(lesions)["dice"].max()
        assert chosen[-1].figure == table(lesions)["dice"].min()


def test_copies_of_one_picture_are_shown_once_and_the_worst_stays_the_worst() -> None:
    rows = table(30)
    ranked = rows[rows["truth"] == "lesion"].sort_values("dice", ascending=False).index
    rows.loc[ranked, "group"] = [f"g{k // 2}" for k in range(30)]  # neighbours in rank are copies
    chosen = [c for c in choose(rows) if c.kind != "false positive"]
    group = dict(zip(rows["image"], rows["group"], strict=True))
    assert len(chosen) == len({group[c.image] for c in chosen}) == 9
    assert chosen[-1].figure == rows["dice"].min()
    assert chosen[0].figure == rows["dice"].max()


def test_a_large_missed_lesion_is_worse_than_a_small_one() -> None:
    rows = table(12)
    lost = rows.index[rows["truth"] == "lesion"][:5]
    rows.loc[lost, ["dice", "predicted_area_px"]] = 0
    rows.loc[lost, "true_area_px"] = [50, 900, 20, 400, 100]
    worst = [c for c in choose(rows) if c.kind == "worst"]
    assert [c.image for c in worst] == rows.loc[lost[[4, 3, 1]], "image"].tolist()


def test_only_the_first_repeat_and_seed_are_shown() -> None:
    rows = masks(predictions(folds=3, repeats=2, seeds=(4, 7)))
    runs = {c.run for c in choose(rows)}
    assert runs <= {f"Net-adam-r0-f{f}-s4" for f in range(3)}
    assert len(runs) > 1


def test_without_a_false_positive_or_a_truth_nothing_is_invented() -> None:
    rows = table(3)
    rows.loc[rows["truth"] == "empty", ["predicted_area_px", "false_positive_share"]] = 0
    assert [c.kind for c in choose(rows)] == ["best", "median", "worst"]
    assert choose(rows.assign(truth="unknown")) == []


def overlay(kind: str = "best", shape: tuple[int, int] = (40, 60), area: int = 80) -> Overlay:
    truth, predicted = np.zeros(shape, bool), np.zeros(shape, bool)
    truth[10:20, :12] = kind != "false positive"  # it touches the image's edge
    predicted[12:20, 2:12] = area > 0
    chosen = Chosen(kind, "run", "benign/benign (1).png", "benign", "normal", 0.8, area)  # type: ignore[arg-type]
    return Overlay(chosen, np.zeros((*shape, 3), np.uint8), truth, predicted)


def test_outlines_enclose_the_masks_and_images_keep_their_shape() -> None:
    figure = overlays_plot([overlay(), overlay(), overlay("false positive", (90, 30))], "Net + Adam")
    shown = [a for a in figure.axes if a.get_visible()]
    assert len(shown) == 3
    for axis, (height, width) in zip(shown, [(40, 60), (40, 60), (90, 30)], strict=True):
        assert axis.get_aspect() == 1
        assert (axis.get_xlim(), axis.get_ylim()) == ((-0.5, width - 0.5), (height - 0.5, -0.5))
    truth, predicted = (c for c in shown[0].collections if isinstance(c, QuadContourSet))
    corners = truth.get_paths()[0].vertices
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([-0.5, 9.5], [11.5, 19.5])
    assert (corners[0] == corners[-1]).all()
    corners = predicted.get_paths()[0].vertices
    assert (corners.min(axis=0).tolist(), corners.max(axis=0).tolist()) == ([1.5, 11.5], [11.5, 19.5])
    assert truth.get_linestyle()[0][1] is None  # solid
    assert predicted.get_linestyle()[0][1] is not None  # dashed, which grey print shows as well
    assert not np.allclose(truth.get_edgecolor(), predicted.get_edgecolor())
    assert len([c for c in shown[2].collections if isinstance(c, QuadContourSet)]) == 1
    labels = [t.get_text() for legend in figure.legends for t in legend.get_texts()]
    assert labels == ["true outline", "predicted outline"]
    assert png(figure).startswith(b"\x89PNG")


@pytest.mark.parametrize("n", [1, 2])
def test_a_figure_of_few_images_stands(n: int) -> None:
    assert png(overlays_plot([overlay()] * n, "Net + Adam")).startswith(b"\x89PNG")


def test_captions() -> None:
    assert caption(overlay().chosen) == "Dice 0.80 · benign, called normal\nbenign/benign (1).png"
    assert caption(overlay(area=0).chosen).startswith("missed (Dice 0) · benign, called normal")
    assert caption(overlay("false positive").chosen).startswith("80.0 % of the image · benign")
    long = Chosen("best", "r", "a/" * 40 + "end.png", "benign", "benign", 1.0, 5)
    first, name = caption(long).split("\n")
    assert first == "Dice 1.00 · benign"
    assert len(name) == 44
    assert name.startswith("…")
    assert name.endswith("a/end.png")


def test_the_file_has_a_name_that_every_system_takes() -> None:
    assert overlays_name("joint:resnet/50", "adam") == "segmentation-joint_resnet_50-adam"
