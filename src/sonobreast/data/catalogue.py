"""The public data sets: what they hold, under which licence, how to cite and get them, what is known to be wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sonobreast.errors import SonobreastError, nearest
from sonobreast.records import Row


class DataSet(Row):
    """One public data set.

    Attributes
    ----------
    name, title : str
    kaggle : str or None
        Handle on Kaggle, ``owner/name``.
    classes : dict
        Class -> number of images as counted on the files.
    masks : int
        Number of mask files.
    licence, citation : str
    """

    name: str
    title: str
    kaggle: str | None
    classes: dict[str, int]
    masks: int
    licence: str
    citation: str


DATA_SETS = {
    d.name: d
    for d in (
        DataSet(
            name="busi",
            title="BUSI, Breast Ultrasound Images (Baheya hospital, Cairo, 2018)",
            kaggle="aryashah2k/breast-ultrasound-images-dataset",
            classes={"benign": 437, "malignant": 210, "normal": 133},
            masks=798,
            licence="CC BY 4.0, as stated for its derivative BreastMNIST",
            citation="Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28 (2020) 104863, "
            "doi:10.1016/j.dib.2019.104863",
        ),
    )
}


def download(name: str) -> Path:
    """Fetch a public data set with kagglehub and return the folder it lies in.

    Raises
    ------
    SonobreastError
        If the name is unknown, kagglehub is missing, or the download fails (off-line, no account).
    """
    data_set = DATA_SETS.get(name.lower())
    if data_set is None:
        raise SonobreastError(f"no data set {name!r} in the catalogue; {nearest(name, DATA_SETS)}")
    by_hand = (
        f"on a machine with a browser, download {data_set.kaggle} from Kaggle (licence: {data_set.licence}), "
        "unpack it, and give the folder to `sonobreast data check DIR`"
    )
    try:
        import kagglehub
    except ImportError as error:
        raise SonobreastError(
            "kagglehub is not installed", remedy=f"install sonobreast[study]; or, {by_hand}"
        ) from error
    try:
        folder: Any = kagglehub.dataset_download(data_set.kaggle)
    except Exception as error:  # kagglehub raises its own, requests', and urllib3's errors
        reason = str(error).strip().splitlines()
        raise SonobreastError(
            f"{data_set.title} could not be downloaded: {type(error).__name__}: {reason[0] if reason else ''}"[:300],
            remedy=f"check the connection and try again; or, {by_hand}",
        ) from error
    return Path(folder)
