from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from resnet_backbones.classifiers import build_classifier
from resnet_backbones.cli.classifiers import backbone_options
from resnet_backbones.cli.pretraining import with_backbone
from resnet_backbones.config import CONFIG_FOLDER, PretrainConfig, load_config, save_config
from resnet_backbones.detectors import build_detector
from resnet_backbones.errors import UserError

CONFIGS = sorted(path.name for path in CONFIG_FOLDER.glob("*.yaml"))
CLASSIFIER_CONFIGS = [name for name in CONFIGS if name.startswith(("imagenet_", "cifar10_"))]
DETECTOR_CONFIGS = [name for name in CONFIGS if name not in CLASSIFIER_CONFIGS]


@pytest.mark.parametrize("name", DETECTOR_CONFIGS)
def test_every_detector_config_builds(name):
    config = load_config(name, ["backbone.weights=null", "backbone.norm=BN", "backbone.freeze_at=0"])
    with torch.device("meta"):
        model = build_detector(config, num_classes=3)
    if config.detector.name in ("retinanet", "fcos"):
        assert model.head.classification_head.num_classes == 3
    else:
        assert model.roi_heads.box_predictor.cls_score.out_features == 4
        assert (model.roi_heads.mask_predictor is not None) == (config.detector.name == "mask_rcnn")


@pytest.mark.parametrize("name", CLASSIFIER_CONFIGS)
def test_every_classifier_config_builds(name):
    config = load_config(name, schema=PretrainConfig)
    with torch.device("meta"):
        for backbone in config.compare or [config.backbone.name]:
            model = build_classifier(num_classes=3, **backbone_options(with_backbone(config, backbone)))
            assert model.fc.out_features == 3
    assert name.removesuffix(".yaml") in config.output_dir


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_header_states_its_command_and_schedule(name):
    head = [line for line in (CONFIG_FOLDER / name).read_text().splitlines() if line.startswith("#")]
    command = "pretrain" if name in CLASSIFIER_CONFIGS else "train"
    assert f"resnet-backbones {command} --config {name}" in " ".join(head)
    assert any(unit in " ".join(head) for unit in ("iterations of", "epochs of", "steps of"))


def test_r101_config_has_the_published_3x_schedule():
    config = load_config("coco_faster_rcnn_R101.yaml")
    assert (config.solver.max_iter, list(config.solver.steps)) == (270000, [210000, 250000])
    assert (config.solver.lr, config.solver.batch_size) == (0.02, 16)
    assert (config.backbone.norm, config.backbone.freeze_at) == ("FrozenBN", 2)


def test_strings_are_not_parsed_as_other_yaml_types(tmp_path):
    """YAML 1.1 would read these as booleans, numbers, a date and a sexagesimal number."""
    words = ["yes", "no", "on", "Off", "true", "01", "1e3", "1_0", "0x1F", "2026-01-02", "1:30", ".5", "~x"]
    row = f"{{root: r, split: 0001, classes: [{', '.join(words)}]}}"
    (tmp_path / "a.yaml").write_text(f"datasets: {{1: {row}}}\ndata: {{train: [1]}}\nbackbone: {{weights: null}}")
    for overrides in ([], [f"datasets.1={row}"]):
        config = load_config(str(tmp_path / "a.yaml"), overrides)
        assert list(config.datasets["1"].classes) == words
        assert (config.datasets["1"].split, list(config.data.train)) == ("0001", ["1"])
        assert config.backbone.weights is None
    save_config(config, tmp_path / "b.yaml")
    assert load_config(str(tmp_path / "b.yaml")) == config


def test_numbers_and_booleans_take_the_types_of_the_schema():
    overrides = [
        "solver.lr=1e-2",
        "solver.steps=[10, 20]",
        "detector.anchor_sizes=[[8, 16], [32]]",
        "data.keep_empty=yes",
    ]
    config = load_config("coco_faster_rcnn_R50", overrides)
    assert (config.solver.lr, list(config.solver.steps), config.data.keep_empty) == (0.01, [10, 20], True)
    assert config.detector.anchor_sizes == [[8, 16], [32]]


def test_duplicate_keys_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("seed: 1\nseed: 2\n")
    with pytest.raises(UserError, match="a.yaml is not valid YAML: duplicate key seed"):
        load_config(str(tmp_path / "a.yaml"))


def test_a_config_may_be_given_by_name_or_path():
    by_path = load_config(str(CONFIG_FOLDER / "coco_mask_rcnn_R50.yaml"))
    assert load_config("coco_mask_rcnn_R50") == load_config("coco_mask_rcnn_R50.yaml") == by_path


def test_a_file_in_the_working_directory_precedes_a_shipped_config(tmp_path, monkeypatch):
    (tmp_path / "coco_mask_rcnn_R50.yaml").write_text("seed: 7")
    monkeypatch.chdir(tmp_path)
    assert load_config("coco_mask_rcnn_R50.yaml").seed == 7
    assert load_config("coco_mask_rcnn_R50").seed == 0


def test_overrides_are_typed():
    config = load_config("coco_mask_rcnn_R50", ["solver.lr=1e-3", "data.test=[a,b]", "backbone.weights=null"])
    assert config.solver.lr == 0.001
    assert list(config.data.test) == ["a", "b"]
    assert config.backbone.weights is None


def test_saved_config_is_complete_and_round_trips(tmp_path):
    config = load_config("bccd_faster_rcnn_R18", ["seed=5"])
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert "rpn_nms_thresh: 0.7" in text  # a default
    assert "oc.env" not in text
    again = load_config(str(tmp_path / "config.yaml"))
    assert OmegaConf.to_container(again, resolve=True) == OmegaConf.to_container(config, resolve=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("solver.lrr=0.1", "override 'solver.lrr=0.1': unknown key solver.lrr. Did you mean lr?"),
        ("sovler.lr=0.1", "unknown key sovler. Did you mean solver?"),
        ("datasets.mine={roots: x}", "unknown key datasets.mine.roots. Did you mean root?"),
        (
            "solver.max_iter=many",
            "solver.max_iter cannot be set: Value 'many'.*could not be converted to Integer",
        ),
        ("data.train=coco", "data.train is coco; it must be a list, such as .coco.\\.$"),
        ("evaluation.tta_sizes=200", "override .*: evaluation.tta_sizes is 200; it must be a list, such as .200.\\.$"),
        ("detector.anchor_sizes=[16,32]", r"detector.anchor_sizes is \[16, 32\]; it must be a list of lists"),
        ("solver=3", "override 'solver=3': solver is 3; it must be a mapping of keys to values"),
        ("datasets.mine=[1]", r"datasets.mine is \[1\]; it must be a mapping of keys to values"),
        ("datasets.mine.classes={a: 1}", "datasets.mine.classes is {'a': 1}; it must be a value or a list"),
        ("solver.lr", "Override 'solver.lr' is not of the form key=value"),
        ("data.train=[a", "Override 'data.train=\\[a' cannot be read: .* expected ',' or ']'"),
        ("solver.amp=int8", "solver.amp is int8; it must be none, bf16 or fp16"),
        ("solver.schedule=poly", "solver.schedule is poly; it must be steps or cosine"),
        ("solver.steps=[9,3]", r"solver.steps is \[9, 3\]; it must be increasing"),
        ("solver.accumulate=3", "solver.accumulate is 3; it must be a divisor of solver.batch_size, 16"),
        ("solver.batch_size=0", "solver.batch_size is 0; it must be from 1 to"),
        ("backbone.fpn_channels=0", "backbone.fpn_channels is 0; it must be from 1"),
        ("backbone.fpn_channels=1000000", "backbone.fpn_channels is 1000000; it must be from 1 to 16384"),
        ("detector.box_pool_size=65536", "detector.box_pool_size is 65536; it must be from 1 to 64"),
        ("solver.batch_size=1000000000", "solver.batch_size is 1000000000; it must be from 1 to 131072"),
        ("detector.mask_head_depth=-1", "detector.mask_head_depth is -1; it must be from 1"),
        ("detector.rpn_nms_thresh=nan", "rpn_nms_thresh is nan; it must be from 0 to 1"),
        ("detector.rpn_bg_iou_thresh=0.9", "rpn_bg_iou_thresh is 0.9; it must be at most rpn_fg_iou_thresh, 0.7"),
        ("detector.image_std=[1]", "image_std is .1.0.; it must be one number for each of 3 channels .* not 1"),
        ("detector.min_size=[[1]]", "min_size is ..1..; it must be a list of at least one number"),
        ("detector.min_size=[0]", "min_size is 0; it must be from 1"),
        ("detector.anchor_sizes=[[-8]]", "anchor_sizes is -8; it must be from 1"),
        ("data.train=[[a]]", "data.train is ..'a'..; it must be a list of names"),
        ("data.num_workers=100000000000000000000", "data.num_workers is 10{20}; it must be from 0 to 1024"),
        ("data.train={a: 1}", "override 'data.train={a: 1}': data.train is {'a': 1}; it must be a list"),
        ("evaluation.tta_sizes=[[64]]", r"tta_sizes is \[\[64\]\]; it must be null or a list of different sizes"),
        ("evaluation.tta_sizes=[64,64]", r"tta_sizes is \[64, 64\]; it must be null or a list of different sizes"),
        ("evaluation.tta_sizes=[100000]", "evaluation.tta_sizes is 100000; it must be from 1 to 16384"),
        ("data.test=[coco_2017_val,coco_2017_val]", "data.test is .*; it must be without repeats"),
        ("evaluation.samples=-1", "evaluation.samples is -1; it must be from 0"),
        ("data.train=[]", "data.train is \\[\\]; it must be at least one data set"),
        ("data.flip=2", "data.flip is 2.0; it must be from 0 to 1"),
        ("output_dir=${nowhere}", "output_dir cannot be resolved: Interpolation key 'nowhere' not found"),
    ],
)
def test_errors_for_bad_overrides_name_the_key_and_the_fix(override, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config("coco_mask_rcnn_R50", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("solver: {lrr: 1}", "bad.yaml: unknown key solver.lrr. Did you mean lr"),
        ("solver: {steps: {1: 2}}", "bad.yaml: solver.steps is {'1': 2}; it must be a list"),
        ("solver: {lr: fast}", "bad.yaml: solver.lr cannot be set: Value 'fast' .* could not be converted to Float"),
        ("a: [1", "bad.yaml is not valid YAML: .* expected ',' or ']'"),
        ("- 1", "bad.yaml must hold a mapping of keys to values"),
        ("\x00", "bad.yaml is not valid YAML: unacceptable character"),
    ],
)
def test_errors_name_the_bad_file(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(str(tmp_path / "bad.yaml"))


def test_a_mapping_in_place_of_a_reference_to_a_list_is_refused():
    with pytest.raises(UserError, match="override 'data.train={a: 1}': Cannot merge incompatible container types"):
        load_config("coco_mask_rcnn_R50", ["data.train=${data.test}", "data.train={a: 1}"])


def test_an_average_that_would_never_be_updated_is_refused():
    overrides = ["solver.max_iter=100", "solver.steps=[]", "solver.ema_decay=0.9", "solver.ema_period=101"]
    with pytest.raises(UserError, match="solver.ema_period is 101; it must be at most solver.max_iter, 100"):
        load_config("coco_mask_rcnn_R50", overrides)


def test_error_for_a_missing_config_suggests_similar_names():
    with pytest.raises(
        UserError,
        match="Config coco_faster_rcnn_R102.yaml does not exist.*Did you mean coco_faster_rcnn_R101",
    ):
        load_config("coco_faster_rcnn_R102.yaml")
    with pytest.raises(UserError, match="Config x does not exist.*Available: bccd_faster_rcnn_R18.yaml"):
        load_config("x")


def test_a_folder_is_not_a_config(tmp_path: Path):
    with pytest.raises(UserError, match="does not exist"):
        load_config(str(tmp_path))
