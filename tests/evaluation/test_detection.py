"""From a detector to metrics and files, on one and several test sets."""

import json

import pytest
import torch
from conftest import coco_dataset, read_coco, write_coco
from torch import nn

from resnet_backbones.data.loader import build_test_loader
from resnet_backbones.evaluation.detection import evaluate, evaluate_sets, save_results


class SquareDetector(nn.Module):
    """Detects the square of `write_coco` in every image as a cat; like a fused model, it has no training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        super().train(False)

    def train(self, mode: bool = True) -> nn.Module:
        if mode:
            raise RuntimeError("no training mode")
        return super().train(mode)

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        outputs = []
        for image in images:
            mask = torch.zeros(1, 1, *image.shape[1:])
            mask[:, :, 8:28, 10:30] = 0.9
            outputs.append(
                {
                    "boxes": torch.tensor([[10.0, 8, 30, 28]]),
                    "labels": torch.tensor([2]),
                    "scores": torch.tensor([0.75]),
                    "masks": mask,
                }
            )
        return outputs


@pytest.fixture
def data(tmp_path):
    write_coco(tmp_path, 4)
    return read_coco(tmp_path), build_test_loader(coco_dataset(tmp_path, train=False), num_workers=0)


def test_evaluate_returns_metrics_and_predictions(data):
    metrics, predictions = evaluate(SquareDetector(), data[1], data[0], masks=True)
    assert metrics["bbox/AP-cat"] == metrics["segm/AP-cat"] == pytest.approx(50)  # every other one is a dog
    assert metrics["bbox/AP-dog"] == metrics["segm/AP-dog"] == 0
    assert [p["image_id"] for p in predictions] == [100, 101, 102, 103]
    assert predictions[0]["bbox"] == [10, 8, 20, 20]
    assert predictions[0]["category_id"] == 7
    assert predictions[0]["segmentation"]["size"] == [40, 48]


def test_metrics_and_files_of_further_sets_carry_the_name_of_the_set(data, tmp_path):
    first, loader = data
    second = read_coco(tmp_path)
    second.name = "other"
    metrics, predictions = evaluate_sets(SquareDetector(), [first, second], [loader, loader], False, "pycocotools")
    assert metrics["bbox/AP"] == metrics["other/bbox/AP"] > 0
    assert "segm/AP" not in metrics
    save_results(tmp_path, [first, second], predictions, samples=2, min_score=0.5)
    for suffix in ("", "_other"):
        assert json.loads((tmp_path / f"predictions{suffix}.json").read_text()) == predictions[0]
        assert sorted(path.name for path in (tmp_path / f"samples{suffix}").iterdir()) == ["0.png", "3.png"]


def test_evaluate_uses_eval_mode_and_restores_training_mode(data):
    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.detector, self.dropout, self.modes = SquareDetector(), nn.Dropout(), []

        def train(self, mode: bool = True) -> nn.Module:
            self.dropout.train(mode)
            self.training = mode
            return self

        def forward(self, images):
            self.modes.append(self.dropout.training)
            return self.detector(images)

    model = Recorder().train()
    evaluate(model, data[1], data[0])
    assert model.modes == [False] * 4
    assert model.training
    assert model.dropout.training
