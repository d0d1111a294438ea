"""The documentation: its links, paths, commands, names and code blocks are valid."""

import os
import pkgutil
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT, draw
from helpers import save_detector
from omegaconf import OmegaConf
from torch.distributed.run import get_args_parser as torchrun_parser

from resnet_backbones import list_backbones
from resnet_backbones.__main__ import COMMANDS, main
from resnet_backbones.config import CONFIG_FOLDER, Config, PretrainConfig, find_config, load_config

DOCS = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
GUIDES = ["README.md", "CONTRIBUTING.md", "configs/README.md", "datasets/README.md", *DOCS]
PAGES = [*GUIDES, "CHANGELOG.md"]  # which may mention what was removed
SCHEMAS = {"train": Config, "pretrain": PretrainConfig}
SOURCES = ("resnet_backbones", "benchmarks", "datasets", "tests", "tools", "configs", "docs", "examples")
FILES = [path for folder in SOURCES for path in (ROOT / folder).rglob("*.*") if "__pycache__" not in path.parts]
CODE = "".join(path.read_text() for path in FILES if path.suffix == ".py" and "tests" not in path.parts)
NOT_THERE = {"resnet_backbones/models/eca.py", "rezero.py", "config.yaml", "data.yaml"}  # made by a reader or a run
PROGRAMS = ("resnet-backbones ", "tools/", "datasets/", "python ", "torchrun ", "make ")
UNKNOWN = "--no-such-flag"


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.S | re.M)


def spans(page: str) -> list[str]:
    """The inline code of the page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def blocks(page: str, language: str = "") -> list[str]:
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), flags=re.S | re.M)
    return [block for name, block in fenced if name == language]


def commands() -> list:
    """(page, arguments) of every command in a block."""
    found = []
    for page in PAGES:
        lines = "".join(blocks(page)).replace("\\\n", " ").splitlines()
        for line in (line for line in lines if line.startswith(PROGRAMS)):
            found.append(pytest.param(page, shlex.split(line, comments=True), id=f"{page}: {line[:60]}"))
    return found


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub generates them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_point_to_existing_files_and_headings(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        target, _, anchor = link.partition("#")
        path = (ROOT / page).parent / target if target else ROOT / page
        assert "://" in link or path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.parametrize("page", GUIDES)
def test_paths_in_the_text_exist(page):
    names = [path.as_posix() for path in FILES]
    for path in set(spans(page)) - NOT_THERE:
        if re.fullmatch(rf"[\w./]+\.(py|md|yaml)|({'|'.join(SOURCES)})/[\w./]*", path):
            assert (ROOT / path).exists() or any(name.endswith(f"/{path}") for name in names), path


@pytest.fixture
def accepts(tmp_path, monkeypatch, capfd):
    """Asserts that a program's parser accepts arguments, without running the program.

    A parser reports an unknown flag only after it has accepted everything else.
    """
    monkeypatch.chdir(tmp_path)

    def check(program, arguments: list[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            program([*arguments, UNKNOWN])
        assert f"unrecognized arguments: {UNKNOWN}" in capfd.readouterr().err, arguments

    return check


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_accepted(page, command, accepts, monkeypatch):
    program, *arguments = command
    if program == "resnet-backbones":
        check_command(arguments, accepts)
    elif program.startswith("tools/"):
        module = re.search(r"resnet_backbones\.cli\.(\w+) import main", (ROOT / program).read_text())[1]
        check_command([module.replace("_", "-"), *arguments], accepts)
    elif program.startswith("datasets/"):
        accepts(runpy.run_path(str(ROOT / program))["main"], arguments)
    elif program == "torchrun":
        options = torchrun_parser().parse_args(arguments)
        assert (options.module, options.training_script) == (True, "resnet_backbones")
        check_command(options.training_script_args, accepts)
    elif program == "python" and arguments[0].startswith("examples/"):
        accepts(runpy.run_path(str(ROOT / arguments[0]))["main"], arguments[1:])
    elif program == "python":
        assert arguments[0] == "-m"
        monkeypatch.setattr(sys, "argv", [*arguments[1:], UNKNOWN])
        accepts(lambda _: runpy.run_module(arguments[1], run_name="__main__"), arguments[2:])
    else:
        check_make(arguments)


def check_command(arguments: list[str], accepts) -> None:
    """The `resnet-backbones` command, its flags and its config exist, and the overrides fit the schema."""
    command, *rest = arguments
    assert command in COMMANDS
    if command == "submit-slurm":
        submitted = next(k for k, argument in enumerate(rest) if argument in SCHEMAS)
        accepts(main, [command, *rest[:submitted]])
        check_command(rest[submitted:], accepts)
    elif command == "train-detectron2":  # the parser is detectron2's
        flags = dict(zip(rest[::2], rest[1::2], strict=True))
        assert set(flags) == {"--config-file", "--datasets"}
        find_config(flags["--config-file"])
        load_config(flags["--datasets"])
    else:
        accepts(main, arguments)
    if command in SCHEMAS:
        overrides = [argument for argument in rest if "=" in argument]
        config = load_config(rest[rest.index("--config") + 1], overrides, SCHEMAS[command])
        assert config.backbone.name in list_backbones()


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for argument in arguments:
        name, assigned, _ = argument.partition("=")
        assert re.search(rf"^{name} \?=" if assigned else rf"^{name}:", makefile, flags=re.M), argument


@pytest.mark.parametrize("page", GUIDES)
def test_commands_and_flags_in_the_text_exist(page):
    known = {"--help", "--version", "--no-deps", *re.findall(r'"(--[a-z0-9-]+)"', CODE)}
    for span in spans(page):
        program, *words = span.split()
        if program == "resnet-backbones" and words and words[0] != "COMMAND":
            assert words[0] in {*COMMANDS, *known}, span
        if program == "make":
            check_make(words)
        if program != "torchrun":
            assert set(re.findall(r"(?<!\S)--[a-z0-9-]+", span)) <= known, span


@pytest.mark.parametrize("page", GUIDES)
def test_names_in_the_text_exist(page):
    schemas = [OmegaConf.structured(schema) for schema in SCHEMAS.values()]
    sections = {name for schema in schemas for name in schema if OmegaConf.is_dict(schema[name]) and name != "datasets"}
    for span in spans(page):
        for section, key in re.findall(rf"(?<![\w./])({'|'.join(sections)})\.(\w+)(?=[=\s]|$)", span):
            assert key in ("py", "yaml") or any(key in schema.get(section, {}) for schema in schemas), span
        for name in re.findall(r"\bresnet_backbones(?:\.\w+)+", span):
            if "detectron2" not in name or find_spec("detectron2"):
                pkgutil.resolve_name(name)  # raises if there is none
        for name in re.findall(r"^([A-Za-z_]\w*)\(|(RESNET_BACKBONES_\w+)", span):
            assert re.search(rf"\b{''.join(name)}\b", CODE), span


def expanded(cell: str) -> set[str]:
    """The names that `resnet18/34` or `vgg*` stands for."""
    if "*" in cell:
        return {name for name in list_backbones(cell) if not name.endswith("_fpn")}
    first, *others = cell.split("/")
    return {first, *(re.sub(r"\d+[a-z]?$", other, first) for other in others)}


def test_readme_lists_the_registered_families():
    table = re.search(r"^\| family .*?\n\n", (ROOT / "README.md").read_text(), flags=re.S | re.M)[0]
    cells = set(re.findall(r"`([^`]+)`", table)) - {"timm:NAME", "features_only"}
    assert set().union(*map(expanded, cells)) == {name for name in list_backbones() if not name.endswith("_fpn")}


def test_every_config_is_in_the_table():
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "configs/README.md").read_text().split("## Backbones")[0], flags=re.M)
    cells = [cell for row in rows for cell in re.findall(r"`(\S+)`", row)]
    assert set().union(*map(expanded, cells)) == {path.stem for path in CONFIG_FOLDER.glob("*.yaml")}


@pytest.mark.parametrize("page", GUIDES)
def test_yaml_blocks_fit_the_schema(page, tmp_path):
    for k, block in enumerate(blocks(page, "yaml")):
        path = tmp_path / f"{k}.yaml"
        path.write_text(block)
        config = load_config(str(path))
        assert {*config.data.train, *config.data.test} <= set(config.datasets)


OPTIONAL = ("detectron2", "timm", "transformers", "segmentation_models_pytorch")


def python_blocks() -> list:
    """(page, code) of every block but CONTRIBUTING's, which has its own tests."""
    pages = [page for page in GUIDES if page != "CONTRIBUTING.md"]
    found = [(page, k, block) for page in pages for k, block in enumerate(blocks(page, "python"))]
    return [pytest.param(page, block, id=f"{page}, block {k}") for page, k, block in found]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_python_blocks_run(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for library in OPTIONAL:
        if re.search(rf"^(import|from) .*\b{library}\b", block, flags=re.M):
            pytest.importorskip(library, reason=f"{library} is not installed")
    if "best.pt" in block:  # the reader's own checkpoint
        os.replace(save_detector(tmp_path)[1], "best.pt")
        draw().save("photo.jpg")
    exec(compile(block, page, "exec"), {})


def test_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    assert 500 <= len(text.split()) <= 1300
