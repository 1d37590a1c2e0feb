"""Seeded fake data in the real disk layouts, tiny networks' weights, and small recipes.

The pictures are speckle with a lesion whose look depends on the class, so that a tiny network can learn from them.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sonobreast.config import Recipe, parse_recipe
from sonobreast.records import LESION_CLASSES, Case

COUNTS = {"benign": 8, "malignant": 7, "normal": 6}
BUS_BRA = (("benign", 2), ("benign", 1), ("malignant", 2), ("benign", 2), ("malignant", 1))
BREAST = {"benign": 4, "malignant": 3, "normal": 2}
BUS_UCLM = {
    "ALWI": ("benign", "normal", "benign"),
    "ANFO": ("malignant", "malignant", "normal"),
    "CRCI": ("both", "benign"),
    "ELCO": ("normal",),
}


def speckle(
    seed: int, label: str = "benign", height: int = 60, width: int = 80
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A picture, uint8 (H, W), and its lesion, bool (H, W): round and dark, or bright and jagged, or none."""
    rng = np.random.default_rng([seed, *label.encode()])
    y, x = np.mgrid[:height, :width]
    picture = 28.0 * np.sqrt(-2.0 * np.log(rng.uniform(1e-4, 1.0, (height, width)))) + 20.0 + 30.0 * y / height
    middle = (height * rng.uniform(0.4, 0.6), width * rng.uniform(0.4, 0.6))
    radius = np.hypot((y - middle[0]) / (0.28 * height), (x - middle[1]) / (0.25 * width))
    angle = np.arctan2(y - middle[0], x - middle[1])
    if label == "malignant":
        # Spikes of their own for each: the same star in every picture would make them near-duplicates.
        spikes = sum(rng.uniform(0.1, 0.3) * np.sin(k * angle + rng.uniform(0.0, 6.3)) for k in (3, 5, 7, 9))
        lesion = radius < 1.0 + spikes
        picture[lesion] += 130.0
    elif label == "normal":
        lesion = np.zeros((height, width), bool)
    else:
        lesion = radius < 1.0
        picture[lesion] *= 0.15
    return np.clip(picture, 1.0, 254.0).astype(np.uint8), lesion


def save_mask(path: Path, lesion: NDArray[np.bool_], mode: str = "1") -> None:
    """Save a mask as BUSI has them: 1-bit, grey, RGB or RGBA."""
    grey = Image.fromarray(lesion.astype(np.uint8) * 255)
    grey.convert(mode).save(path)


def write_busi(
    folder: Path, counts: Mapping[str, int] = COUNTS, *, upper: bool = False, nested: bool = False, seed: int = 0
) -> Path:
    """The layout of the Kaggle archive; the first image of a class has further masks where there are lesions."""
    root = folder / "Dataset_BUSI_with_GT" if nested else folder
    modes = ("1", "L", "RGB", "RGBA")
    for label, n in counts.items():
        name = label.capitalize() if upper else label
        place = root / name
        place.mkdir(parents=True)
        for i in range(1, n + 1):
            picture, lesion = speckle(seed * 1000 + i, label)
            mode = ("L", "RGB", "RGBA")[i % 3]
            mask = "_Mask" if upper else "_mask"
            ending = ".PNG" if upper else ".png"
            Image.fromarray(picture).convert(mode).save(place / f"{name} ({i}){ending}")
            save_mask(place / f"{name} ({i}){mask}{ending}", lesion, modes[i % 4])
            for k in range(1, 3 if i == 1 and label != "normal" else 1):
                save_mask(place / f"{name} ({i}){mask}_{k}{ending}", lesion, modes[k])
    return folder


def write_class_folders(folder: Path, counts: Mapping[str, int] = COUNTS, *, seed: int = 0, size: int = 40) -> Path:
    """One folder for each class, no masks, any names."""
    for label, n in counts.items():
        (folder / label).mkdir(parents=True)
        for i in range(n):
            picture = speckle(seed * 1000 + i, label, size, size)[0]
            Image.fromarray(picture).save(folder / label / f"scan_{i:03d}.png")
    return folder


def write_csv(
    folder: Path,
    counts: Mapping[str, int] = COUNTS,
    *,
    delimiter: str = ",",
    bom: bool = False,
    group_size: int = 2,
    with_masks: bool = True,
) -> Path:
    """Images side by side and a table with group, patient, mask and spacing_mm; returns the table."""
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    rows = []
    for label, n in counts.items():
        for i in range(n):
            picture, lesion = speckle(i, label)
            image, mask = f"images/{label}_{i}.png", f"masks/{label}_{i}.png"
            Image.fromarray(picture).save(folder / image)
            save_mask(folder / mask, lesion)
            patient = f"{label[0].upper()}{i // group_size}"
            rows.append(
                {
                    "image": image,
                    "label": label,
                    "group": f"group-{patient}",
                    "patient": patient,
                    "mask": mask if with_masks else "",
                    "spacing_mm": "0.08" if i % 2 else "",
                    "birads": "4a",
                }
            )
    table = folder / "cases.csv"
    with table.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return table


def write_bus_bra(
    folder: Path, patients: Sequence[tuple[str, int]] = BUS_BRA, *, nested: bool = False, delimiter: str = ","
) -> Path:
    """BUS-BRA as published; of each patient the class and the images (1 or 2); returns the folder of the table."""
    root = folder / "BUSBRA" if nested else folder
    (root / "Images").mkdir(parents=True)
    (root / "Masks").mkdir()
    rows: list[dict[str, object]] = []
    devices = ("GE Logiq 7 @10-14MHz", "GE Logiq 5 @10-12MHz", "Toshiba Aplio 300 @12-14 MHz")
    for number, (label, n) in enumerate(patients, start=1):
        for side in ("s",) if n == 1 else ("l", "r"):
            name = f"{number:04d}-{side}"
            picture, lesion = speckle(3 * number + (side == "r"), label)
            Image.fromarray(picture).save(root / "Images" / f"bus_{name}.png")
            save_mask(root / "Masks" / f"mask_{name}.png", lesion)
            rows.append(
                {
                    "ID": f"bus_{name}",
                    "Case": number,
                    "Histology": "fibroadenoma" if label == "benign" else "invasive ductal carcinoma",
                    "Pathology": label,
                    "BIRADS": 2 + number % 4,
                    "Device": devices[number % 3],
                    "Width": picture.shape[1],
                    "Height": picture.shape[0],
                    "Side": {"l": "left", "r": "right", "s": "single"}[side],
                    "BBOX": "[10,12,30,20]",
                }
            )
    write_rows(root / "bus_data.csv", rows, delimiter)
    write_rows(root / "5-fold-cv.csv", [{k: r[k] for k in ("ID", "Pathology")} for r in rows], ",")
    return root


def write_rows(path: Path, rows: Sequence[Mapping[str, object]], delimiter: str = ",") -> None:
    """A CSV without anything of ours in it."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


BREAST_TABLE = "BrEaST-Lesions-USG-clinical-data-Dec-15-2023.xlsx"
BREAST_COLUMNS = (
    *("CaseID", "Image_filename", "Mask_tumor_filename", "Mask_other_filename", "Pixel_size", "Age", "Shape"),
    *("BIRADS", "Verification", "Diagnosis", "Classification"),
)


def write_breast(folder: Path, counts: Mapping[str, int] = BREAST, *, absent: int = 3) -> Path:
    """BrEaST as published: RGBA pictures with a transparent corner, a tumour mask each, two other masks for the first.

    The last ``absent`` rows of the spreadsheet name images that are not there.
    """
    from openpyxl import Workbook

    place = folder / "BrEaST-Lesions_USG-images_and_masks"
    place.mkdir(parents=True)
    book = Workbook()
    sheet = book.active
    sheet.title = "BrEaST-Lesions-USG clinical dat"
    sheet.append(BREAST_COLUMNS)
    labels = [label for label, n in counts.items() for _ in range(n)]
    for number, label in enumerate([*labels, *["benign"] * absent], start=1):
        name = f"case{number:03d}"
        tumour = None if label == "normal" else f"{name}_tumor.png"
        other = f"{name}_other1.png&{name}_other2.png" if number == 1 else None
        grade = {"normal": 1, "benign": 3, "malignant": "4c"}[label]
        proof = {"normal": "not applicable", "benign": "confirmed by follow-up care"}.get(label, "confirmed by biopsy")
        kind = "Invasive lobular carcinoma" if label == "malignant" else "not applicable"
        age: object = 57 if number % 2 else "not available"
        sheet.append((number, f"{name}.png", tumour, other, 0.0078125, age, "oval", grade, proof, kind, label))
        if number > len(labels):
            continue
        picture, lesion = speckle(number, label)
        alpha = np.full(picture.shape, 255, np.uint8)
        alpha[:9, :9] = 0
        Image.fromarray(np.dstack([picture] * 3 + [alpha])).save(place / f"{name}.png")
        if tumour:
            save_mask(place / tumour, lesion, "RGBA")
        for k in (1, 2) if other else ():
            box = np.zeros(lesion.shape, bool)
            box[-8 * k :, :20] = True
            save_mask(place / f"{name}_other{k}.png", box, "RGBA")
    words = book.create_sheet("Data Dictionary")
    words.append(("type", "description"))
    words.append(("Pixel_size", "pixel size of the image in centimeters"))
    book.save(folder / BREAST_TABLE)
    return folder


def write_bus_uclm(
    folder: Path, patients: Mapping[str, Sequence[str]] = BUS_UCLM, *, nested: bool = False, upper: bool = False
) -> Path:
    """BUS-UCLM as published; of each patient the classes of the images, ``both`` for two lesions of two classes.

    The mask of the second image of a patient is twice its image's size, that of the third a part of another shape.
    """
    root = folder / "BUS-UCLM" if nested else folder
    images, masks = (root / (name.upper() if upper else name) for name in ("images", "masks"))
    images.mkdir(parents=True)
    masks.mkdir()
    rows = []
    for number, (patient, labels) in enumerate(patients.items()):
        for i, label in enumerate(labels):
            name = f"{patient}_{i:03d}.png"
            shown = "benign" if label == "both" else label
            picture, lesion = speckle(100 * number + i, shown)
            Image.fromarray(picture).convert("RGB").save(images / name)
            save_colour_mask(masks / name, lesion, label, scale=2 if i == 1 else 1, cut=15 if i == 2 else 0)
            said = "Malignant" if label == "both" else label.capitalize()
            rows.append({"Image": name, "Label": said, "Doppler": "No", "Marks": "Yes" if i else "No"})
    write_rows(root / "INFO.csv", rows, ";")
    return root


def save_colour_mask(path: Path, lesion: NDArray[np.bool_], label: str, scale: int = 1, cut: int = 0) -> None:
    """A mask in the colours of BUS-UCLM; for ``both`` the left half of the lesion is benign, the right malignant."""
    rgb = np.zeros((*lesion.shape, 3), np.uint8)
    middle = int(np.median(np.nonzero(lesion)[1])) if lesion.any() else 0
    left = lesion & (np.arange(lesion.shape[1]) < middle)
    rgb[lesion if label == "benign" else left if label == "both" else np.zeros_like(lesion)] = (0, 255, 0)
    rgb[lesion if label == "malignant" else lesion & ~left if label == "both" else np.zeros_like(lesion)] = (255, 0, 0)
    large = np.repeat(np.repeat(rgb, scale, axis=0), scale, axis=1)
    Image.fromarray(large[cut:]).save(path)


def fake_cases(counts: Mapping[str, int], group: Callable[[str, int], str] | None = None) -> list[Case]:
    """Rows of a manifest without files behind them."""
    return [
        Case(
            image=f"{label}/{label} ({i + 1}).png",
            label=label,
            group=f"{label}/{label} ({i + 1}).png" if group is None else group(label, i),
            width=10,
            height=10,
            sha256="0" * 64,
            source="busi",
        )
        for label, n in counts.items()
        for i in range(n)
    ]


def write_weights(
    folder: Path, name: str, *, keep: Callable[[str], bool] = lambda key: True, seed: int = 0, **card: Any
) -> dict[str, Any]:
    """A seeded random network of timm as a file of weights with its card; returns the tensors that were written.

    Batch norms get statistics that differ from their start, so that losing them would be seen.
    """
    import timm
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(name, num_classes=0)
        state = {}
        for key, tensor in network.state_dict().items():
            if key.endswith("running_mean"):
                tensor = 0.1 * torch.randn_like(tensor)
            elif key.endswith("running_var"):
                tensor = 0.5 + torch.rand_like(tensor)
            if keep(key):
                state[key] = tensor.clone().contiguous()
    save_file(state, folder / f"{name}.safetensors")
    content = {
        "model": name,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "licence": "made for a test",
        "origin": f"seed {seed}",
        **card,
    }
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return state


def before(*prefixes: str) -> Callable[[str], bool]:
    """For ``keep``: all tensors but those of some modules."""
    return lambda key: not key.startswith(prefixes)


def tiny_recipe(changes: Mapping[str, Any] | None = None) -> Recipe:
    """Settings of a study of seconds; ``changes`` are dotted names."""
    content: dict[str, Any] = {
        "name": "tiny",
        "preprocess": {"size": 64, "scaling": "weights"},
        "augment": {"rotation": 10, "zoom": 0.1, "shift": 0.1, "horizontal_flip": True, "views": 2},
        "head": {"hidden": [16], "dropout": 0.3},
        "model": {"architectures": ["test_resnet"], "precision": "float32"},  # the same on every machine
        "training": {"optimizers": ["adam"], "learning_rate": 0.003, "batch_size": 8, "epochs": 3},
        "split": {"validation": 0.2, "test": 0.2},
    }
    for key, value in (changes or {}).items():
        *parts, last = key.split(".")
        inner = content
        for part in parts:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return parse_recipe(content, origin="tiny")


def make_images(
    n: int = 12, size: int = 64, classes: Sequence[str] = LESION_CLASSES, seed: int = 0
) -> Any:  # sonobreast.training.images.Images; torch is imported inside
    """Decoded images of a study, without files."""
    import torch

    from sonobreast.training.images import Images

    label = [i % len(classes) for i in range(n)]
    pixels = np.stack([speckle(seed * 1000 + i, classes[c], size, size)[0] for i, c in enumerate(label)])
    names = tuple(f"{classes[c]}/{i:03d}.png" for i, c in enumerate(label))
    return Images(np.repeat(pixels[..., None], 3, axis=3), names, torch.tensor(label), tuple(classes))
