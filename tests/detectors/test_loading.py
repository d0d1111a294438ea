"""Detectors built from a checkpoint alone."""

import pytest
import torch
from conftest import TINY, coco_overrides, write_coco

from resnet_backbones.config import load_config
from resnet_backbones.detectors import build_detector, describe, load_detector
from resnet_backbones.errors import UserError


@pytest.mark.parametrize(
    "options", [["detector.name=mask_rcnn"], ["detector.name=retinanet", "backbone.out_features=[p3, p4, p5, p6, p7]"]]
)
def test_a_checkpoint_is_enough_to_build_its_detector(tmp_path, options):
    write_coco(tmp_path)
    overrides = [*TINY, *coco_overrides(tmp_path), *options, "backbone.in_channels=4"]
    config = load_config("coco_mask_rcnn_R50.yaml", overrides)
    model = build_detector(config, 2).eval()
    metadata = describe(model, config, ["dog", "cat"])
    torch.save({"model": model.state_dict(), "metadata": metadata}, tmp_path / "last.pt")
    loaded = load_detector(str(tmp_path / "last.pt"))
    assert loaded.classes == ["dog", "cat"]
    assert not loaded.training
    images = [torch.rand(4, 60, 80)]
    with torch.no_grad():
        for key, value in model(images)[0].items():
            assert torch.equal(loaded(images)[0][key], value)

    del metadata["config"]["detector"]["box_loss"]  # which checkpoints of earlier versions lack
    torch.save({"model": model.state_dict(), "metadata": metadata}, tmp_path / "old.pt")
    old = load_detector(str(tmp_path / "old.pt"))
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in old.state_dict().items())

    torch.save({"model": model.state_dict()}, tmp_path / "bare.pt")
    bare = str(tmp_path / "bare.pt")
    with pytest.raises(UserError, match="bare.pt does not say which detector it holds; give the YAML"):
        load_detector(bare)
    with pytest.raises(UserError, match="bare.pt does not name its classes"):
        load_detector(bare, config)
    by_hand = load_detector(bare, config, ["a", "b"])
    assert by_hand.classes == ["a", "b"]
    assert all(torch.equal(tensor, loaded.state_dict()[key]) for key, tensor in by_hand.state_dict().items())


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        ({"backbone": {}, "detector": {}}, "backbone.name"),
        ({"backbone": {"name": "resnet18"}, "detector": {"name": "fcos"}}, "detector.library"),
        ({"detector": {"library": "torchvision", "name": "fcos"}}, "backbone.name"),
        ("text", "backbone.name"),
    ],
)
def test_metadata_that_does_not_name_the_detector_is_refused(tmp_path, config, missing):
    state = {"weight": torch.rand(1)}
    torch.save({"model": state, "metadata": {"config": config, "classes": ["a"]}}, tmp_path / "odd.pt")
    with pytest.raises(UserError, match=f"odd.pt does not say .*: its metadata has no config.{missing}; give the YAML"):
        load_detector(str(tmp_path / "odd.pt"))
