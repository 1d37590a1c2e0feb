"""Which settings of a recipe heads on stored features do not know: they are refused, never passed over."""

from __future__ import annotations

from sonobreast.config import Recipe
from sonobreast.errors import SonobreastError

_OF_WHOLE_NETWORKS = (
    "training.schedule",
    "training.warmup",
    "training.weight_decay",
    "training.label_smoothing",
    "training.gradient_clip",
    "training.averaging",
    "training.resolutions",
    "inference.flips",
    "augment.lesion_zoom",  # its views depend on the training subset, stored ones serve all folds
)


def check_head_settings(recipe: Recipe) -> None:
    """Refuse settings that heads on stored features do not know.

    The gradients and updates of such heads are written by hand, at a constant rate.

    Raises
    ------
    SonobreastError
        If such a setting is not at its default; all of them are named.
    """
    default = Recipe(name="default", model=recipe.model)
    unknown = []
    for name in _OF_WHOLE_NETWORKS:
        group, key = name.split(".")
        if getattr(getattr(recipe, group), key) != getattr(getattr(default, group), key):
            unknown.append(name)
    if unknown:
        raise SonobreastError(
            f"{', '.join(unknown)}: not for heads on a frozen backbone, which are trained on stored features",
            remedy="train the network itself (model.backbone: finetune, or finetune:NAME), or leave the setting out",
        )
