"""The subpackages: what each may import, which imports are optional or lazy, how long files and functions may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import resnet_backbones

PACKAGE = ROOT / "resnet_backbones"
MODULES = sorted(PACKAGE.rglob("*.py"))
GROUND = {"errors", "registry", "paths", "distributed", "preprocessing", "optional"}
NETWORKS = GROUND | {"models", "weights", "backbones"}

# What each subpackage may import of the package, besides itself; top-level modules count as subpackages.
MAY_IMPORT = {
    **dict.fromkeys(GROUND, GROUND),
    "models": GROUND,
    "weights": GROUND | {"models"},
    "backbones": GROUND | {"models", "weights"},
    "classifiers": NETWORKS,
    "hosts": NETWORKS | {"classifiers"},
    "detectors": NETWORKS | {"classifiers", "hosts"},
    "analysis": NETWORKS | {"classifiers"},
    "config": {"errors"},
    "data": GROUND,
    "evaluation": GROUND | {"data"},
    "report": GROUND | {"data", "evaluation"},
    "training": GROUND | {"weights"},
    "inference": NETWORKS | {"classifiers", "detectors", "data", "evaluation"},
    "export": NETWORKS | {"classifiers", "detectors", "data", "evaluation"},
    "cli": NETWORKS
    | {"classifiers", "detectors", "hosts", "analysis", "config", "data", "evaluation"}
    | {"inference", "export", "report", "training"},
    "__main__": {"__init__", "errors", "cli"},
    "__init__": NETWORKS | {"inference"},
}
OPTIONAL = {"av", "detectron2", "huggingface_hub", "timm", "transformers", "submitit"}
OPTIONAL |= {"nncf", "onnx", "onnxruntime", "onnxscript", "openvino"}
HEAVY = OPTIONAL | {"torch", "torchvision", "fvcore", "tensorboard", "matplotlib", "pandas", "pycocotools"}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """The absolute names of everything a file imports, anywhere in it; `module.name` for `from module import name`."""
    package = path.relative_to(ROOT).parent.parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def subpackage_of(parts: list[str] | tuple[str, ...]) -> str:
    """NAME of `resnet_backbones.NAME.…`; `__init__` for the names that it defines itself."""
    inside = len(parts) > 1 and ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").is_file())
    return parts[1] if inside else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_one_way(path):
    subpackage = subpackage_of(path.relative_to(ROOT).with_suffix("").parts)
    names = [name.split(".") for name in imports_of(path)]
    imported = {subpackage_of(parts) for parts in names if parts[0] == "resnet_backbones"} - {subpackage}
    assert imported <= MAY_IMPORT[subpackage], f"{subpackage} may not import {imported - MAY_IMPORT[subpackage]}"


@pytest.mark.parametrize(
    ("library", "files"),
    [
        ("detectron2", {"hosts/detectron2.py", "detectors/detectron2.py"}),
        ("transformers", {"hosts/transformers.py"}),
        ("huggingface_hub", {"weights/hub.py"}),
        ("av", {"inference/video.py"}),
        ("onnx", {"export/onnx.py"}),
        ("onnxruntime", {"export/onnx.py"}),
        ("openvino", {"export/openvino.py"}),
        ("nncf", {"export/openvino.py"}),
    ],
)
def test_optional_library_is_imported_only_in_its_own_files(library, files):
    importing = {path for path in MODULES if library in {name.split(".")[0] for name in imports_of(path)}}
    assert {path.relative_to(PACKAGE).as_posix() for path in importing} == files


def test_everything_imports_without_the_optional_libraries():
    needing = {f"resnet_backbones.{folder}.{library}" for folder in ("hosts", "detectors") for library in OPTIONAL}
    names = [name for name in map(name_of, MODULES) if name not in needing]
    code = f"import sys, importlib\nfor name in {OPTIONAL}: sys.modules[name] = None\n"
    code += f"for name in {names}: importlib.import_module(name)\n"
    code += "from resnet_backbones.errors import UserError\n"
    for library in ("timm", "transformers"):
        code += f"try: import resnet_backbones.hosts.{library}\nexcept UserError as error: print(error)\n"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    timm, transformers = result.stdout.splitlines()
    assert "pip install timm" in timm
    assert 'hosts.transformers needs transformers 5: pip install "transformers>=5"' in transformers


def loaded_by(code: str) -> set[str]:
    """The modules loaded by running `code` in a fresh process."""
    code = f"import contextlib, io, sys\nwith contextlib.redirect_stdout(io.StringIO()):\n {code}\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert not loaded_by("import resnet_backbones") & (HEAVY | {"omegaconf"})
    late = HEAVY - {"torch", "torchvision", "fvcore"} | {"omegaconf"}
    assert not loaded_by("from resnet_backbones import build_backbone") & late


@pytest.mark.parametrize("arguments", [[], ["train", "--help"], ["pretrain", "--help"], ["predict", "--help"]], ids=str)
def test_help_imports_nothing_heavy(arguments):
    code = f"from resnet_backbones.__main__ import main\n with contextlib.suppress(SystemExit): main({arguments})"
    modules = loaded_by(code)
    assert "resnet_backbones.__main__" in modules
    assert not modules & HEAVY


def test_public_names_resolve_and_unknown_names_raise():
    for name in resnet_backbones.__all__:
        assert getattr(resnet_backbones, name).__name__ == name
    assert set(resnet_backbones.__all__) <= set(dir(resnet_backbones))
    with pytest.raises(AttributeError, match="no attribute 'resnet50'"):
        resnet_backbones.resnet50  # noqa: B018


def test_few_modules_are_top_level():
    assert len([path for path in MODULES if path.parent == PACKAGE]) <= 10


def test_files_and_functions_are_short():
    long = {}
    for path in [*MODULES, *(ROOT / "tools").glob("*.py")]:
        text = path.read_text()
        long |= {name_of(path): len(text.splitlines())} if len(text.splitlines()) > 350 else {}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1  # decorators are above lineno
                long |= {f"{name_of(path)}.{node.name}": length} if length > 60 else {}
    assert not long
