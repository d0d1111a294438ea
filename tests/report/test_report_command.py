"""`resnet-backbones report` and `check-data --report` on files as users have them, and reports that fail."""

import json
import logging
import os
import re
import resource

import pytest
from conftest import coco_overrides, read_coco, save_coco, write_coco

from resnet_backbones.__main__ import main
from resnet_backbones.cli.reporting import detection_reports
from resnet_backbones.config import load_config
from resnet_backbones.errors import UserError
from resnet_backbones.paths import atomic_write

SQUARE = [10, 8, 20, 20]


def prediction(image_id: int = 100, category_id: int = 3, score: float = 0.9, **more) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": SQUARE, "score": score, **more}


@pytest.fixture
def report(tmp_path, capfd):
    """`report(predictions, *arguments)` on four images returns the status, the page's content and stdout or stderr."""
    write_coco(tmp_path, 4)

    def run(predictions: object, *arguments: str) -> tuple[int, dict, str]:
        path, page = tmp_path / "found.json", tmp_path / "report.html"
        path.write_text(json.dumps(predictions))
        status = 0
        try:
            main(["report", str(tmp_path / "instances.json"), str(path), "--output", str(page), *map(str, arguments)])
        except SystemExit as stop:
            status = stop.code
        out, err = capfd.readouterr()
        return status, content_of(page) if page.is_file() else {}, out or err

    return run


def content_of(page) -> dict:
    return json.loads(re.search(r'id="content">\n(.*?)\n</script>', page.read_text(), re.DOTALL)[1])


def test_report_of_a_results_file(report, tmp_path):
    status, content, out = report(
        [prediction(100 + k, 7 if k % 2 else 3) for k in range(4)], "--images", tmp_path / "images"
    )
    assert status == 0
    assert out.splitlines()[0].startswith("AP 100.00  AP50 100.00")
    assert f"the report is in {tmp_path}/report.html" in out
    assert content["notes"] == []
    assert content["title"] == "found.json"
    assert content["subtitle"].startswith(f"{tmp_path}/found.json on {tmp_path}/instances.json: ")
    assert content["curves"] == []
    assert [image["name"] for image in content["gallery"]["images"]] == ["0.png", "1.png", "2.png", "3.png"]
    assert all(image["picture"].startswith("data:image/jpeg;base64,") for image in content["gallery"]["images"])
    numbers = json.loads((tmp_path / "report.json").read_text())
    assert numbers == content["numbers"]
    assert numbers["thresholds"] == {"dog": 0.9, "cat": 0.9}


def test_comparison_with_another_results_file(report, tmp_path):
    other = tmp_path / "other.json"
    other.write_text(json.dumps([prediction(100)]))
    status, content, _ = report([prediction(100), prediction(102)], "--against", other, "--json", tmp_path / "n.json")
    assert status == 0
    assert content["numbers"]["comparison"]["names"] == [str(other), str(tmp_path / "found.json")]
    rows = {row["name"]: row for row in content["numbers"]["comparison"]["rows"]}
    assert rows["dog"]["difference"] == pytest.approx(100 * (101 - 51) / 101)
    low, high = rows["dog"]["interval"]
    assert low <= rows["dog"]["difference"] <= high
    assert json.loads((tmp_path / "n.json").read_text())["comparison"] == content["numbers"]["comparison"]


def test_missing_images_are_noted(report, tmp_path):
    (tmp_path / "images/2.png").unlink()
    (tmp_path / "images/3.png").write_bytes(b"no image")
    found = [prediction(100 + k) for k in range(4)]
    status, content, _ = report(found, "--images", tmp_path / "images")
    assert status == 0
    assert "picture" in next(image for image in content["gallery"]["images"] if image["name"] == "1.png")
    assert content["notes"][0].startswith("2 of the images cannot be shown. Image ")
    assert len(content["gallery"]["images"]) == 4

    status, content, _ = report(found)
    assert status == 0
    assert content["notes"] == [
        "The images are not shown, because their folder was not given: outlines are drawn on gray."
    ]
    assert all("picture" not in image for image in content["gallery"]["images"])


@pytest.mark.parametrize(("folder", "fault"), [("nowhere", "does not exist"), ("instances.json", "is not a folder")])
def test_invalid_image_folder_is_refused(report, tmp_path, folder, fault):
    status, _, err = report([prediction()], "--images", tmp_path / folder)
    assert status == 2
    assert err == f"error: --images: {tmp_path}/{folder} {fault}; give the folder of the images, or leave it out.\n"


def test_images_without_predictions_are_counted(report, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("resnet_backbones"), "propagate", True)
    _, content, _ = report([prediction(), prediction(101)], "--images", tmp_path / "images")
    note = f"{tmp_path}/found.json: 2 of 4 images have no predictions; their objects count as missed."
    assert content["notes"] == [note]
    assert note in caplog.text


def test_report_without_predictions(report, tmp_path):
    status, content, out = report([])
    assert status == 0
    assert out.startswith("AP 0.00")
    assert f"{tmp_path}/found.json has no predictions." in content["notes"]
    assert content["numbers"]["calibration"]["ece"] is None
    assert {row["kind"]: row["count"] for row in content["numbers"]["errors"]}["missed"] == 4
    assert report([], "--iou-type", "segm")[0] == 0


def test_report_without_images_and_objects(report, tmp_path):
    save_coco(tmp_path, {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]})
    status, content, out = report([])
    assert status == 0
    assert out.startswith("AP -")
    assert content["gallery"] == {"images": [], "total": 0}
    assert content["numbers"]["precision_recall"][0]["classes"] == [None]


def test_predictions_of_unknown_classes_are_noted_or_refused(report, tmp_path):
    status, content, _ = report([prediction(), prediction(category_id=99)])
    assert status == 0
    text = "1 of 2 predictions are of classes that the ground truth does not have."
    assert f"{tmp_path}/found.json: {text}" in content["notes"]
    status, _, err = report([prediction(category_id=1), prediction(category_id=2)])
    assert status == 2
    assert err.splitlines()[-1] == (
        f"error: {tmp_path}/found.json: none of the 2 predictions is of a class of the ground truth, whose category "
        "ids are 3, 7; the first is of 1. Are they from another data set?"
    )


@pytest.mark.parametrize("where", ["predictions", "against"])
def test_predictions_for_unknown_images_are_refused(report, tmp_path, where):
    other = tmp_path / "other.json"
    rows = [[prediction()], [prediction(5)]]
    other.write_text(json.dumps(rows[where == "against"]))
    status, _, err = report(rows[where == "predictions"], "--against", other)
    assert status == 2
    wrong = "other.json" if where == "against" else "found.json"
    assert f"error: {tmp_path}/{wrong}: prediction 0 is of an image that is not in the ground truth" in err
    assert not (tmp_path / "report.html").exists()


def test_a_test_set_without_annotations_is_refused(report, tmp_path):
    content = write_coco(tmp_path, 2)
    del content["annotations"]
    save_coco(tmp_path, content)
    status, _, err = report([prediction()])
    assert status == 2
    assert "has no annotations to compare predictions with" in err


def test_inputs_are_not_overwritten(report, tmp_path):
    status, _, err = report([prediction()], "--output", tmp_path / "found.html")  # the numbers would go to found.json
    assert status == 2
    assert err == f"error: {tmp_path}/found.json would be overwritten; choose another name with --output or --json.\n"
    assert json.loads((tmp_path / "found.json").read_text()) == [prediction()]


REFUSED = [
    (["--output", "{}/no/x.html"], "{}/no/x.html cannot be written: the folder {}/no does not exist; create it."),
    (["--output", "{}/images"], "--output: {}/images is a folder; name a file in it, such as {}/images/report.html."),
    (["--output", "{}/x.json"], "--output: {}/x.json must end in .html; choose another name."),
    (["--json", "{}/x.html"], "--json: {}/x.html must end in .json; choose another name."),
    (["--json", "{}/fifo.json"], "--json: {}/fifo.json is a device, not a file; choose another name."),
    (["--json", "{}/instances.json"], "{}/instances.json would be overwritten; choose another name with --output or "
     "--json."),
    (["--output", ""], "--output: . is a folder; name a file in it, such as report.html."),
    (["--output", "/proc/x.html"], "/proc/x.html cannot be written: No such file or directory; choose another folder."),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "error"), REFUSED)
def test_output_paths_are_checked_first(report, tmp_path, arguments, error):
    os.mkfifo(tmp_path / "fifo.json")
    before = (tmp_path / "instances.json").read_text()
    status, _, err = report([prediction(5)], *(text.format(tmp_path) for text in arguments))  # of an unknown image
    assert status == 2
    assert err == f"error: {error.replace('{}', str(tmp_path))}\n"
    assert (tmp_path / "instances.json").read_text() == before


def test_full_disk_keeps_the_previous_page_and_numbers(report, tmp_path):
    assert report([prediction()])[0] == 0
    previous = {path: path.read_bytes() for path in (tmp_path / "report.html", tmp_path / "report.json")}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # enough for the numbers alone
    try:
        status, _, err = report([])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 2
    text = f"error: {tmp_path}/report.html cannot be written: File too large; choose another place."
    assert err.splitlines()[-1] == text
    assert {path: path.read_bytes() for path in previous} == previous
    assert not list(tmp_path.glob(".part-*"))


def test_atomic_write_refuses_a_device_and_follows_a_link(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UserError, match="fifo is a folder or device, not a file"), atomic_write(tmp_path / "fifo"):
        pass
    assert (tmp_path / "fifo").is_fifo()
    (tmp_path / "file.txt").write_text("old")
    (tmp_path / "link.json").symlink_to("file.txt")
    with atomic_write(tmp_path / "link.json") as temporary:
        assert temporary.suffix == ".json"
        temporary.write_text("new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "file.txt").read_text() == "new"


def test_check_data_shows_the_ground_truth(tmp_path, capfd):
    write_coco(tmp_path, 4)
    (tmp_path / "images/3.png").unlink()
    arguments = ["--report", str(tmp_path / "data.html"), "data.num_workers=1", *coco_overrides(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(["check-data", "quickstart_mask_rcnn.yaml", *arguments])
    assert stop.value.code == 1  # for the missing image
    content = content_of(tmp_path / "data.html")
    assert content["text"] == capfd.readouterr().out.strip()
    assert content["numbers"]["classes"][0] == {"class": "dog", "objects": 2, "images": 2}
    images = content["gallery"]["images"]
    assert [image["name"] for image in images] == ["0.png", "1.png", "2.png", "3.png"]
    assert ["picture" in image for image in images] == [True, True, True, False]
    assert [o.get("crowd") for o in images[0]["true"]] == [None, 1]
    assert content["notes"][0].startswith("1 of the images cannot be shown. Image ")


@pytest.mark.parametrize("option", ["--output", "--report"])
@pytest.mark.parametrize("name", ["instances.json", "", "images/0.png", "no/x.html", "no/x.json"])
def test_check_data_does_not_overwrite_inputs(tmp_path, capfd, option, name):
    write_coco(tmp_path, 2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    arguments = [option, name and str(tmp_path / name), "data.num_workers=1", *coco_overrides(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        main(["check-data", "quickstart_mask_rcnn.yaml", *arguments])
    err = capfd.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert (str(tmp_path / name) if name else ".") in err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


def test_failed_report_is_a_warning(tmp_path, caplog, monkeypatch):
    write_coco(tmp_path, 2)
    config = load_config("quickstart_mask_rcnn.yaml", ["detector.name=faster_rcnn"])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lo')
    monkeypatch.setattr(logging.getLogger("resnet_backbones"), "propagate", True)
    detection_reports(tmp_path, [read_coco(tmp_path)], [[prediction()]], config)
    assert f"{tmp_path}/report.html is not written: JSONDecodeError: Unterminated string" in caplog.text
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "report.html").mkdir()
    detection_reports(tmp_path, [read_coco(tmp_path)], [[prediction()]], config)
    assert f"report.html is not written: {tmp_path}/report.html is a folder or device" in caplog.text


def test_each_test_set_gets_its_own_report(tmp_path):
    write_coco(tmp_path, 2)
    config = load_config("quickstart_mask_rcnn.yaml", ["detector.name=faster_rcnn"])
    first, second = read_coco(tmp_path), read_coco(tmp_path)
    second.name = "night"
    detection_reports(tmp_path, [first, second], [[prediction()], []], config)
    assert content_of(tmp_path / "report.html")["title"] == "own"
    assert content_of(tmp_path / "report_night.html")["numbers"]["predictions"] == 0
    assert json.loads((tmp_path / "report_night.json").read_text())["thresholds"] == {"dog": 0.5, "cat": 0.5}
