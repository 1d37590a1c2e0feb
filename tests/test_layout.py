"""The import rules of the architecture, held on the source itself and in fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import sonobreast

PACKAGE = Path(sonobreast.__file__).parent
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def imported(file: Path) -> set[str]:
    """Every module that a file imports, anywhere in it, as full names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def loaded_by(module: str) -> set[str]:
    """Top-level packages and own modules in memory after importing one module in a fresh interpreter."""
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def name_of(file: Path) -> str:
    return "sonobreast." + ".".join(file.relative_to(PACKAGE).with_suffix("").parts)


@pytest.mark.parametrize("file", MODULES, ids=name_of)
def test_nothing_imports_the_command_line(file: Path) -> None:
    assert not any(n.startswith("sonobreast.cli") for n in imported(file))


@pytest.mark.parametrize("file", sorted((PACKAGE / "evaluation").glob("*.py")), ids=name_of)
def test_evaluation_knows_no_torch(file: Path) -> None:
    names = imported(file)
    assert not any(n.split(".")[0] in ("torch", "timm", "lightning", "safetensors") for n in names)
    assert not any(n.startswith(("sonobreast.training", "sonobreast.models")) for n in names)


@pytest.mark.parametrize("file", sorted((PACKAGE / "serving").glob("*.py")), ids=name_of)
def test_serving_needs_what_a_hospital_installs(file: Path) -> None:
    if file.stem in ("export", "variants"):
        return  # what writes bundles needs PyTorch and onnx
    names = imported(file)
    assert not any(n.split(".")[0] in ("torch", "timm", "pandas", "scipy", "sklearn", "onnx") for n in names)
    assert not any(n.startswith(("sonobreast.training", "sonobreast.models")) for n in names)


@pytest.mark.parametrize("module", ["evaluation.report", "evaluation.compare", "data.manifest", "data.preprocess"])
def test_no_torch_in_memory_after_import(module: str) -> None:
    assert "torch" not in loaded_by(f"sonobreast.{module}")


@pytest.mark.parametrize("module", ["preprocess", "masks_out"])
def test_the_base_install_is_enough_for_preprocessing(module: str) -> None:
    heavy = {"torch", "pandas", "scipy", "sklearn", "skimage", "matplotlib", "statsmodels"}
    assert not heavy & loaded_by(f"sonobreast.data.{module}")


def test_the_command_line_starts_light() -> None:
    heavy = {"torch", "pandas", "scipy", "sklearn", "numpy", "pydantic", "matplotlib", "PIL", "yaml"}
    assert not heavy & loaded_by("sonobreast.cli")


def test_folders_are_one_level_deep() -> None:
    assert all(len(p.relative_to(PACKAGE).parts) <= 2 for p in MODULES)
    assert not any(p.stem in ("utils", "helpers", "common", "misc") for p in MODULES)


def test_init_files_only_hand_names_on() -> None:
    for file in PACKAGE.rglob("__init__.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            assert isinstance(node, ast.Expr | ast.Import | ast.ImportFrom | ast.Assign), f"{file}: {ast.dump(node)}"
