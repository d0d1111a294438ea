"""The shipped configs on small slices of the real data."""

import json
import tarfile

import pytest


@pytest.fixture
def slices(shared, tmp_path, monkeypatch):
    """`$RESNET_BACKBONES_DATASETS` points to four images of each split of bccd and nuclei."""
    bccd = tmp_path / "bccd"
    (bccd / "ImageSets/Main").mkdir(parents=True)
    for folder in ("Annotations", "JPEGImages"):
        (bccd / folder).symlink_to(shared / "bccd" / folder)
    for split in ("trainval", "test"):
        names = (shared / f"bccd/ImageSets/Main/{split}.txt").read_text().split()[:4]
        (bccd / f"ImageSets/Main/{split}.txt").write_text("\n".join(names))
    nuclei = tmp_path / "nuclei"
    (nuclei / "annotations").mkdir(parents=True)
    (nuclei / "images").symlink_to(shared / "nuclei/images")
    for split in ("train", "val"):
        content = json.loads((shared / f"nuclei/annotations/instances_{split}.json").read_text())
        content["images"] = content["images"][:4]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (nuclei / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    monkeypatch.setenv("RESNET_BACKBONES_DATASETS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("config", "expected", "category_ids"),
    [
        ("bccd_faster_rcnn_R18", {"bbox/AP-RBC", "bbox/AP-Platelets", "voc/AP50_11point", "voc/AP50_area"}, {1, 2, 3}),
        ("nuclei_mask_rcnn_R18", {"bbox/AP-nucleus", "segm/AP", "segm/AP50"}, {7}),
    ],
)
def test_shipped_config_trains_and_writes_its_results(slices, tool, config, expected, category_ids):
    short = ["solver.max_iter=2", "solver.steps=[1]", "solver.warmup_iters=1", "solver.batch_size=2"]
    more = ["data.num_workers=0", "evaluation.samples=1", "detector.box_score_thresh=0.0", f"output_dir={slices}/out"]
    status, _, err = tool("train_net", "--config", config, *short, *more)
    assert status == 0, err
    assert expected < set(json.loads((slices / "out/metrics.json").read_text()))
    predictions = json.loads((slices / "out/predictions.json").read_text())
    assert {p["category_id"] for p in predictions} <= category_ids
    assert ("segmentation" in predictions[0]) == ("mask" in config)
    assert len(list((slices / "out/samples").glob("*.png"))) == 1


@pytest.mark.slow
def test_the_quick_cifar_config_learns(shared, tool, tmp_path, monkeypatch):
    with tarfile.open(shared / "cifar10_imagefolder.tar.xz", "r|xz") as archive:
        files = (member for member in archive if member.isfile())
        for k, member in enumerate(files):
            if k % 50 == 0:  # 1000 training and 200 validation images
                archive.extract(member, tmp_path / "cifar10", filter="data")
    monkeypatch.setenv("RESNET_BACKBONES_DATASETS", str(tmp_path))
    short = ["solver.epochs=2", "solver.warmup_epochs=0.5", "solver.batch_size=32", "solver.lr=0.1"]
    status, _, err = tool(
        "pretrain", "--config", "cifar10_resnet20_quick", *short, "data.num_workers=0", f"output_dir={tmp_path}/out"
    )
    assert status == 0, err
    assert json.loads((tmp_path / "out/metrics.json").read_text())["top1"] > 17  # chance is 10, give or take 2
