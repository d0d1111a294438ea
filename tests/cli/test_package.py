"""The command line, and the wheel as a user installs it: without the checkout, run from an empty folder."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from resnet_backbones import __version__, list_backbones
from resnet_backbones.__main__ import COMMANDS, main

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("resnet_backbones", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source")]
    subprocess.run(build, check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a program of a bare environment that has the wheel, in a given folder; returns status, stdout and stderr.

    The environment sees the dependencies installed here, but not this checkout.
    """
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment)
    python = environment / "bin" / "python"
    packages = environment / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    subprocess.run([*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "RESNET_BACKBONES_DATASETS")}

    def run(folder: Path, program: str, *arguments: str) -> tuple[int, str, str]:
        command = [str(environment / "bin" / program), *arguments]
        result = subprocess.run(
            command, cwd=folder, env=variables | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        return result.returncode, result.stdout, result.stderr

    return run


def test_the_wheel_contains_package_configs_and_entry_point(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = archive.read(f"resnet_backbones-{__version__}.dist-info/entry_points.txt").decode()
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "resnet_backbones").rglob("*.py")}
    configs = {f"resnet_backbones/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    report = ROOT / "resnet_backbones/report"
    pages = {path.relative_to(ROOT).as_posix() for path in report.iterdir() if path.suffix in (".css", ".html", ".js")}
    others = {"resnet_backbones/py.typed", "resnet_backbones/analysis/truths.json"}
    assert files == modules | configs | pages | others
    assert "resnet-backbones = resnet_backbones.__main__:main" in entry_points


def test_the_installed_command_lists_the_backbones(installed, tmp_path):
    status, out, err = installed(tmp_path, "resnet-backbones", "list")
    assert (status, out.splitlines()) == (0, list_backbones()), err
    assert not list(tmp_path.iterdir())
    status, out, _ = installed(tmp_path, "python", "-c", "import resnet_backbones; print(resnet_backbones.__file__)")
    assert str(ROOT) not in out


def test_help_lists_every_command_and_each_has_its_own_help(capsys):
    main([])
    table = capsys.readouterr().out
    main(["--help"])
    assert capsys.readouterr().out == table
    for command in set(COMMANDS) - {"train-detectron2"}:  # whose help is detectron2's
        assert f"  {command} " in table
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert f"usage: resnet-backbones {command}" in capsys.readouterr().out


def test_an_unknown_command_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["trian"])
    assert capsys.readouterr().err.startswith("error: Unknown command 'trian'. Did you mean train")


def test_the_version_is_printed(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"resnet-backbones {__version__}\n"


def test_tools_are_executable_wrappers_of_the_cli():
    for path in (ROOT / "tools").glob("*.py"):
        lines = path.read_text().splitlines()
        assert lines[0] == "#!/usr/bin/env python3"
        assert re.fullmatch(r"from resnet_backbones\.cli\.(\w+) import main", lines[1])
        assert os.access(path, os.X_OK)


def test_missing_data_error_says_where_to_get_it(installed, tmp_path):
    status, _, err = installed(tmp_path, "resnet-backbones", "train", "--config", "coco_faster_rcnn_R101.yaml")
    assert (status, err.count("\n")) == (2, 1), err
    assert f"{tmp_path}/datasets/coco" in err
    assert "cocodataset.org" in err
    assert "RESNET_BACKBONES_DATASETS" in err


@pytest.mark.slow
def test_the_quickstart_runs_from_an_empty_folder(installed, tmp_path):
    config = ["--config", "quickstart_mask_rcnn.yaml"]
    short = ["solver.max_iter=2", "solver.steps=[]", "data.num_workers=0"]
    status, _, err = installed(tmp_path, "resnet-backbones", "train", *config, *short)
    assert status == 0, err
    output = tmp_path / "output" / "quickstart"
    trained = json.loads((output / "metrics.json").read_text())
    evaluate = ["--eval-only", f"weights={output}/last.pt", f"output_dir={tmp_path}/again", "data.num_workers=0"]
    status, _, err = installed(tmp_path, "resnet-backbones", "train", *config, *evaluate)
    assert status == 0, err
    assert json.loads((tmp_path / "again" / "metrics.json").read_text()) == trained
    truth, predictions = tmp_path / "datasets/shapes/val/instances.json", output / "predictions.json"
    arguments = ["--ground-truth", str(truth), "--predictions", str(predictions)]
    status, out, err = installed(tmp_path, "resnet-backbones", "evaluate", *arguments)
    assert status == 0, err
    assert json.loads(out.splitlines()[-1]).items() <= trained.items()


def test_a_closed_pipe_is_not_an_error():
    listing = f"{sys.executable} -m resnet_backbones list --table"
    result = subprocess.run(f"{listing} | head -1", shell=True, cwd=ROOT, capture_output=True, text=True)
    assert (len(result.stdout.splitlines()), result.stderr) == (1, "")
