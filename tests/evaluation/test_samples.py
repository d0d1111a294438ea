"""The sample images of a run."""

from conftest import draw, read_coco, save_coco, write_coco
from PIL import Image

from resnet_backbones.evaluation.samples import save_samples


def test_samples_handle_extreme_images_and_names(tmp_path):
    content = write_coco(tmp_path, 3)
    long = "x" * 250 + ".png"
    draw(1, 1900).save(tmp_path / "images" / long)
    content["images"][0] |= {"file_name": long, "width": 1, "height": 1900}
    content["categories"][0]["name"] = "Größe 猫 " * 200_000
    content["annotations"][0]["bbox"] = [-9e7, -9e7, 9.9e7, 9.9e7]
    save_coco(tmp_path, content)
    paths = save_samples(read_coco(tmp_path), [], tmp_path / "samples", 10**9, 0.5)
    assert [p.name for p in paths] == ["x" * 50 + ".png", "1.png", "2.png"]
    assert Image.open(paths[0]).size == (2 * 1 + 8, 1920)
    assert Image.open(paths[1]).size == (2 * 576 + 8, 480)


def test_an_unreadable_image_has_no_sample(tmp_path, caplog):
    write_coco(tmp_path, 3)
    (tmp_path / "images/1.png").write_bytes(b"no image")
    paths = save_samples(read_coco(tmp_path), [], tmp_path / "samples", 3, 0.5)
    assert [p.name for p in paths] == ["0.png", "2.png"]
    assert "1.png cannot be decoded: it is not an image. No sample is drawn." in caplog.text


def test_images_with_the_same_name_get_distinct_samples(tmp_path):
    content = write_coco(tmp_path, 4)
    names = ["front/1.png", "back/1.png", "1.png", "1.jpg"]
    for image, name in zip(content["images"], names, strict=True):
        image["file_name"] = name
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        draw().save(tmp_path / "images" / name)
    save_coco(tmp_path, content)
    paths = save_samples(read_coco(tmp_path), [], tmp_path / "samples", 4, 0.5)
    assert [p.name for p in paths] == ["front_1.png", "back_1.png", "1.png", "1_3.png"]
    assert len(list((tmp_path / "samples").iterdir())) == 4
