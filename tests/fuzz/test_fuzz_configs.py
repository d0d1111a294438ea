"""Fuzzed configs: every one loads or is refused in one line."""

from pathlib import Path

import pytest
import yaml
from fuzzing import JUNK, fuzz, mutated, mutated_bytes
from hypothesis import strategies as st

from resnet_backbones.config import CONFIG_FOLDER, Config, PretrainConfig, load_config
from resnet_backbones.errors import UserError

CONFIGS = {
    "detector": ("coco_mask_rcnn_R50.yaml", Config),
    "own data": ("bccd_faster_rcnn_R18.yaml", Config),
    "classifier": ("imagenet_resnet50_a2.yaml", PretrainConfig),
}
YAMLS = [
    "a: &a [*a]", "[" * 200, "{a: " * 50, "seed: 1:1", "seed: 2001-99-99", "seed: 0b", "seed: !!int x",
    "? [1]\n: 2", "output_dir: !!set {a}", "a: 1\na: 2", "1: 2", "--- 1\n--- 2", "null: 1",
    "output_dir: ${output_dir}", "output_dir: ${seed}${seed}", "output_dir: ${oc.env:HOME}",
    "output_dir: ${oc.env:A,b}", "output_dir: ${${a}}", "seed: ???", "solver: ???",
    "solver: {steps: [1, null]}", "data: {train: [1.5]}", "seed: ", "", "\t", "seed: 1e400", "output_dir: ${",
]  # fmt: skip


def attack(canary: Path) -> str:
    """A config that creates the file `canary` if it is read without care."""
    return f"output_dir: !!python/object/apply:os.system ['touch {canary}']"


def test_code_in_a_config_is_not_run(tmp_path):
    (tmp_path / "attack.yaml").write_text(attack(tmp_path / "canary"))
    with pytest.raises(UserError, match="attack.yaml is not valid YAML: .*python/object/apply:os.system"):
        load_config(str(tmp_path / "attack.yaml"))
    assert not (tmp_path / "canary").exists()


def test_damaged_configs_are_loaded_or_refused(tmp_path, record_property):
    paths = {kind: CONFIG_FOLDER / name for kind, (name, _) in CONFIGS.items()}
    file = tmp_path / "fuzzed.yaml"
    yamls = st.sampled_from([*YAMLS, attack(tmp_path / "canary")])

    def texts(kind: str) -> st.SearchStrategy:
        whole = paths[kind].read_text()
        values = mutated(lambda: yaml.safe_load(whole), JUNK | st.sampled_from(["${seed}", "${solver}", "???", "1e-3"]))
        return st.one_of(values.map(dumped), mutated_bytes(whole.encode(), most=2), yamls.map(str.encode))

    keys = st.sampled_from([
        "seed", "solver.lr", "solver.steps", "data.train", "backbone", "a.b", "solver.steps[9999999]",
        "", ".", "a" * 300, "a." * 600 + "b", "datasets.x.root", "evaluation.scales", "compare",
    ])  # fmt: skip
    values = st.one_of(
        JUNK.map(str), yamls, st.text(max_size=9), st.sampled_from(["1", "0.1", "[1,2]", "null", "{a: 1}"])
    )
    overrides = st.lists(st.tuples(keys, values).map("=".join), max_size=2)
    examples = st.sampled_from(sorted(CONFIGS)).flatmap(lambda kind: st.tuples(st.just(kind), texts(kind), overrides))

    def read(example: tuple[str, bytes, list[str]]) -> None:
        kind, text, changes = example
        file.write_bytes(text)
        load_config(str(file), changes, CONFIGS[kind][1])

    fuzz("configs", record_property, tmp_path, examples, read)


def dumped(value: object) -> bytes:
    return yaml.safe_dump(value).encode("utf-8", "surrogatepass")
