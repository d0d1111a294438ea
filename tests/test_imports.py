"""The import direction of the design, and that detectron2 is optional."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "resnet_backbones"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A room may import only rooms of lower rank, or its own.
RANK = {
    "errors": 0, "nesting": 0,
    "config": 1, "registry": 1, "distributed": 1, "optional": 1, "paths": 1, "preprocessing": 1,
    "report": 1, "curves": 1, "naming": 1, "interruption": 2, "launching": 3, "sync_bn": 1.5, "initialization": 1,
    "layers": 2, "compiling": 2, "folding": 2, "conv_norm": 2.5, "stems": 3, "shortcuts": 3,
    "attention": 3, "deform": 3, "blocks": 4, "resnet": 5, "extractors": 5, "fpn": 5, "preact": 6, "options": 7,
    "weights": 8, "backbones": 9, "architecture": 9.5, "classifier": 10, "detectors": 10,
    "analysis": 11, "pretraining": 11, "verification": 11, "benchmark": 11, "truths": 12, "__main__": 13,
}  # fmt: skip
APART = {
    "averaging", "checkpoint", "data", "evaluation", "fused", "journal", "nonfinite", "optimizer_state", "precise_bn",
    "run", "solver", "testing", "training", "visualize",
}  # fmt: skip
NETWORKS = {
    "layers",
    "conv_norm",
    "stems",
    "shortcuts",
    "attention",
    "deform",
    "blocks",
    "resnet",
    "extractors",
    "fpn",
    "preact",
    "options",
    "backbones",
    "architecture",
    "classifier",
    "detectors",
}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    package = ["resnet_backbones", *path.relative_to(PACKAGE).parent.parts]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module or "").split(".")
            names = [[*base, alias.name] for alias in node.names] if not node.module else [base]
            rooms |= {[part for part in name if part][1] for name in names}
        assert not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnet_backbones"))
    return rooms - {room_of(path)}


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent != PACKAGE or p.name != "__init__.py"], ids=str)
def test_imports_go_one_way(path):
    room, rooms = room_of(path), imported_rooms(path)
    if room == "config":
        assert rooms <= {"errors", "nesting"}
    elif room in APART:
        assert not rooms & NETWORKS
    else:
        higher = {other for other in rooms - APART if RANK[other] >= RANK[room]}
        assert not higher, f"{room} imports {higher}"


def test_only_the_twin_and_its_rival_name_detectron2():
    named = [p for p in MODULES if "import detectron2" in p.read_text() or "from detectron2" in p.read_text()]
    assert {p.relative_to(PACKAGE).as_posix() for p in named} == {"detectors/detectron2.py", "benchmark/detectron2.py"}


def test_everything_imports_without_detectron2():
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in MODULES if p.name != "detectron2.py"]
    code = "import sys, importlib; sys.modules['detectron2'] = None\n"
    code += f"for name in {names}: importlib.import_module(name.removesuffix('.__init__'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def loaded_by(code: str) -> set[str]:
    """The modules in memory after `code`, in a process of its own."""
    code = (
        f"import contextlib, io, sys\nwith contextlib.redirect_stdout(io.StringIO()):\n    {code}\nprint(*sys.modules)"
    )
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"matplotlib", "timm", "pandas", "fvcore.nn", "pycocotools", "faster_coco_eval", "detectron2"}


def test_the_package_itself_imports_nothing_heavy():
    assert not loaded_by("import resnet_backbones") & (HEAVY | {"torch", "torchvision", "fvcore", "omegaconf"})
    assert not loaded_by("from resnet_backbones import build_backbone") & (HEAVY | {"tensorboard", "omegaconf"})


def test_help_imports_nothing_that_only_a_run_needs():
    path = str(ROOT / "tools" / "train_net.py")
    modules = loaded_by(f"""import runpy; sys.argv = [{path!r}, "--help"]
    with contextlib.suppress(SystemExit):
        runpy.run_path(sys.argv[0], run_name="__main__")""")
    assert "resnet_backbones.cli.run" in modules
    assert not modules & (HEAVY | {"torch", "torchvision", "fvcore", "tensorboard", "resnet_backbones.data"})


def test_public_names_are_there_and_no_others():
    import resnet_backbones

    for name in resnet_backbones.__all__:
        assert getattr(resnet_backbones, name).__name__ == name
    assert set(resnet_backbones.__all__) <= set(dir(resnet_backbones))
    with pytest.raises(AttributeError, match="no attribute 'resnet50'"):
        resnet_backbones.resnet50  # noqa: B018


def test_files_are_small():
    lines = {p.name: len(p.read_text().splitlines()) for p in MODULES}
    assert max(lines.values()) <= 350, lines
    tools = {p.name: len(p.read_text().splitlines()) for p in (ROOT / "tools").glob("*.py")}
    assert max(tools.values()) <= 100, tools
