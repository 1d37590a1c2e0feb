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
        ``name`` is also the layout's name in a manifest.
    layout : str
        Which files the published archive holds.
    kaggle : str or None
        Handle on Kaggle, ``owner/name``; None where it is not fetched by this tool.
    page : str
        Where a person gets it.
    classes : dict
        Class -> number of images: counted on the files for BUSI, on the spreadsheet for BrEaST, as published for the
        other two.
    patients : int or None
        None where they are not known.
    masks : int or None
        Number of mask files that `sonobreast.data.folders.read_layout` lists; None where it was not counted.
    licence, citation : str
    """

    name: str
    title: str
    layout: str
    kaggle: str | None
    page: str
    classes: dict[str, int]
    patients: int | None
    masks: int | None
    licence: str
    citation: str


DATA_SETS = {
    d.name: d
    for d in (
        DataSet(
            name="busi",
            title="BUSI, Breast Ultrasound Images (Baheya hospital, Cairo, 2018)",
            layout="benign/, malignant/, normal/ with NAME.png, NAME_mask.png, NAME_mask_1.png",
            kaggle="aryashah2k/breast-ultrasound-images-dataset",
            page="https://www.kaggle.com/datasets/aryashah2k/breast-ultrasound-images-dataset",
            classes={"benign": 437, "malignant": 210, "normal": 133},
            patients=None,
            masks=798,
            licence="CC BY 4.0, as stated for its derivative BreastMNIST",
            citation="Al-Dhabyani et al., Dataset of breast ultrasound images, Data in Brief 28 (2020) 104863, "
            "doi:10.1016/j.dib.2019.104863",
        ),
        DataSet(
            name="bus_bra",
            title="BUS-BRA (National Institute of Cancer, Rio de Janeiro)",
            layout="Images/bus_0001-l.png, Masks/mask_0001-l.png, bus_data.csv",
            kaggle=None,
            page="https://doi.org/10.5281/zenodo.8231412",
            classes={"benign": 1268, "malignant": 607},
            patients=1064,
            masks=1875,
            licence="free use, also modified, on condition that the article is cited (LICENSE.txt in the archive)",
            citation="Gomez-Flores et al., BUS-BRA: A breast ultrasound dataset for assessing computer-aided diagnosis "
            "systems, Medical Physics 51 (2024) 3110-3123, doi:10.1002/mp.16812",
        ),
        DataSet(
            name="breast",
            title="BrEaST, Breast-Lesions-USG (Poland)",
            layout="the spreadsheet BrEaST-Lesions-USG-clinical-data-*.xlsx and a folder with case001.png, "
            "case001_tumor.png, case001_other1.png",
            kaggle=None,
            page="https://doi.org/10.7937/9WKK-Q141",
            classes={"benign": 154, "malignant": 98, "normal": 4},
            patients=256,
            masks=252,
            licence="CC BY 4.0",
            citation="Pawlowska et al., Curated benchmark dataset for ultrasound based breast lesion analysis, "
            "Scientific Data 11 (2024) 148, doi:10.1038/s41597-024-02984-z",
        ),
        DataSet(
            name="bus_uclm",
            title="BUS-UCLM (Ciudad Real General University Hospital, 2022 to 2023)",
            layout="images/ALWI_000.png, masks/ALWI_000.png (green benign, red malignant, black normal), INFO.csv",
            kaggle=None,
            page="https://doi.org/10.17632/7fvgj4jsp7",
            classes={"benign": 174, "malignant": 90, "normal": 419},
            patients=38,
            masks=None,
            licence="CC BY-NC 4.0 in the authors' repository, given elsewhere as CC BY 4.0: the page of the version "
            "that you download decides",
            citation="Vallez et al., BUS-UCLM: Breast ultrasound lesion segmentation dataset, Scientific Data 12 "
            "(2025), doi:10.1038/s41597-025-04562-3",
        ),
    )
}


def catalogue_name(name: str) -> str:
    """``BUS-BRA`` as the catalogue has it: ``bus_bra``."""
    return name.strip().lower().replace("-", "_")


def download(name: str) -> Path:
    """Fetch a public data set with kagglehub and return the folder it lies in.

    Parameters
    ----------
    name : str
        In the catalogue, in upper or lower case, with ``-`` or ``_``.

    Raises
    ------
    SonobreastError
        If the name is unknown, the data set is one that a person downloads, kagglehub is missing, or the download
        fails (off-line, no account).
    """
    data_set = DATA_SETS.get(catalogue_name(name))
    if data_set is None:
        raise SonobreastError(f"no data set {name!r} in the catalogue; {nearest(name, DATA_SETS)}")
    if data_set.kaggle is None:
        raise SonobreastError(
            f"{data_set.title} is not fetched by this tool",
            remedy=f"download it from {data_set.page}, unpack it ({data_set.layout}) and give its folder to "
            f"`sonobreast data check DIR`; licence: {data_set.licence}; cite: {data_set.citation}",
        )
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
