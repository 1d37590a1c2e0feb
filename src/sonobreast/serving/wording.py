"""A prediction in plain words: what page and API say of one image. Words only, no mark-up."""

from __future__ import annotations

from sonobreast.serving.about import About
from sonobreast.serving.predictor import Prediction


def abstains(prediction: Prediction) -> bool | None:
    """Whether the conformal set is not one class; None where the bundle has no sets."""
    return None if prediction.conformal is None else len(prediction.conformal) != 1


def which_classes(prediction: Prediction, about: About) -> str:
    """The conformal set in words."""
    found, rule = prediction.conformal, about.rule
    if found is None:
        return "This bundle has no conformal sets: it does not say which classes can be ruled out."
    share = "" if rule is None else f" (sets hold the true class in {100 * (1.0 - rule.alpha):.0f} % of each class)"
    if not found:
        text = f"No class is in the prediction set: the model abstains{share}."
    elif len(found) == 1:
        text = f"Only {found[0]} is in the prediction set{share}."
    elif len(found) == len(prediction.classes):
        text = f"Every class is in the prediction set: the model abstains{share}."
    else:
        text = f"{_and(found)} are in the prediction set: the model abstains{share}."
    return text + (" That holds for images like those of the study, not for this one." if _outside(prediction) else "")


def decision(prediction: Prediction) -> str:
    """What comes of the frozen threshold; empty where there is none."""
    if prediction.malignant is None:
        return ""
    return "Called malignant" if prediction.malignant else "Not called malignant"


def reason(prediction: Prediction, about: About) -> str:
    """Why it was decided so; empty where there is no threshold."""
    if prediction.malignant is None or prediction.threshold is None:
        return ""
    rule = about.rule
    name = next(iter(rule.thresholds), "") if rule is not None else about.thresholds[0].name
    p, limit = _apart(float(prediction.probability[prediction.classes.index("malignant")]), prediction.threshold)
    side = "at or above" if prediction.malignant else "below"
    chosen = f", frozen at {name} on validation images" if name else ""
    return f"Probability of malignancy {p}, {side} the threshold {limit}{chosen}."


def size(prediction: Prediction) -> str:
    """The size of the lesion; empty where nothing segments."""
    lesion = prediction.lesion
    if lesion is None:
        return ""
    if not lesion.area_px:
        return "No lesion is outlined."
    text = f"Largest diameter of the outlined lesion: {lesion.diameter_px:.0f} px"
    if lesion.diameter_mm is not None:
        text = f"Largest diameter of the outlined lesion: {lesion.diameter_mm:.1f} mm ({lesion.diameter_px:.0f} px)"
    text += "" if lesion.pieces == 1 else f", of the largest of {lesion.pieces} pieces"
    unknown = lesion.diameter_mm is None
    return text + ("; no millimetres, because the pixel spacing is not known." if unknown else ".")


def warnings(prediction: Prediction, about: About) -> list[str]:
    """What must not be overlooked, most important first."""
    found = []
    if _outside(prediction):
        found.append("This image is unlike those that the model was trained on. Do not rely on this result.")
    if abstains(prediction):
        found.append("The model abstains: it cannot name one class. A person must decide.")
    alone = prediction.conformal is not None and len(prediction.conformal) == 1
    if alone and prediction.malignant is not None and prediction.malignant != (prediction.conformal == ("malignant",)):
        found.append("Threshold and prediction set contradict each other. A person must decide.")
    if prediction.lesion is not None and prediction.lesion.area_px and prediction.predicted == "normal":
        found.append("The most probable class is normal, and yet a lesion is outlined: the two contradict each other.")
    return found


def unknowns(about: About) -> list[str]:
    """What a bundle cannot say of any image."""
    found = []
    if about.rule is None:
        found.append("Probabilities are as the network gives them: this bundle has no calibration.")
        found.append("The bundle has no conformal sets: it never abstains, however unsure it is.")
    if about.domain is None:
        found.append("The bundle cannot tell whether an image is unlike its training images.")
    return found


def _outside(prediction: Prediction) -> bool:
    return prediction.in_domain is False


def _and(found: tuple[str, ...]) -> str:
    text = f"{', '.join(found[:-1])} and {found[-1]}"
    return text[0].upper() + text[1:]


def _apart(p: float, limit: float) -> tuple[str, str]:
    """Two numbers with as many decimals as show that they differ, at least two."""
    for decimals in range(2, 9):
        texts = f"{p:.{decimals}f}", f"{limit:.{decimals}f}"
        if texts[0] != texts[1]:
            break
    return texts
