"""The page in a real Chromium: what the slider and the checkboxes draw; nothing is fetched and no errors are logged."""

import json
import re

import numpy as np
import pytest
from browser import browse, needs_browser
from conftest import draw, read_coco, save_coco, write_coco

from resnet_backbones.report.gallery import LARGEST
from resnet_backbones.report.page import write_page
from resnet_backbones.report.writing import (
    write_classification_report,
    write_data_report,
    write_detection_report,
)

NASTY = "</script><script>document.title='run'</script><img src=x onerror=\"document.title='run'\">"
FETCHED = "performance.getEntriesByType('resource').map((e) => e.name).filter((name) => !name.startsWith('data:'))"


@pytest.fixture
def written(tmp_path):
    """A page of four images: the square is found with a score of 0.9 in the first and of 0.4 in the second, the third
    has a false positive with 0.7, and the last has no detections."""
    content = write_coco(tmp_path, 4)
    content["categories"][0]["name"] = NASTY
    save_coco(tmp_path, content)
    square, wrong = [10, 8, 20, 20], [30, 25, 10, 10]
    rows = [(100, 3, square, 0.9), (101, 7, square, 0.4), (102, 3, wrong, 0.7)]
    keys = ("image_id", "category_id", "bbox", "score")
    found = [dict(zip(keys, row, strict=True)) for row in rows]
    path = tmp_path / "report.html"
    log = [{"step": k, "loss": 2 / k, "lr": 0.1, "images_per_second": 7 + k} for k in range(1, 6)]
    log[-1]["bbox/AP"] = 50.0
    write_detection_report(path, read_coco(tmp_path), found, "bbox", "mine", ("other", found[:2]), log)
    return path


SHOWN = """
const visible = (e) => getComputedStyle(e).display !== "none";
const shown = () => {
  const count = {};
  for (const layer of ["correct", "wrong", "found", "missed"])
    count[layer] = [...document.querySelectorAll(`.item .shape.${layer}`)].filter(visible).length;
  return count;
};
const outlines = () => [...new Set([...document.querySelectorAll(".shape")].map((e) => getComputedStyle(e).fill))];
const slide = (value) => {
  const input = document.getElementById("score");
  input.value = value;
  input.dispatchEvent(new Event("input"));
  return shown();
};
const toggle = (layer) => { document.getElementById(`show-${layer}`).click(); return shown(); };
"""


@needs_browser
def test_slider_and_checkboxes_change_what_is_drawn(written, tmp_path):
    script = (
        SHOWN
        + f"""
    const result = {{ high: slide(0.8), low: slide(0.1), middle: slide(0.5) }};
    for (const layer of Object.keys(LAYERS)) {{ result[layer] = toggle(layer)[layer]; toggle(layer); }}
    result.again = shown();
    result.title = document.title;
    result.names = [...document.querySelectorAll(".controls input + i")].map((i) => i.parentElement.textContent);
    result.dashes = [...document.querySelectorAll(".controls i")].map((i) => getComputedStyle(i).borderStyle);
    result.counts = document.querySelector(".controls .total").textContent;
    result.charts = document.querySelectorAll("figure svg").length;
    result.pictures = [...document.querySelectorAll(".item image")].length;
    result.fetched = {FETCHED};
    result.option = [...document.querySelectorAll("select option")].map((o) => o.textContent);
    document.querySelector(".item").click();
    result.dialog = document.querySelector("dialog").open && document.querySelectorAll("dialog .shape").length;
    return result;"""
    )
    found, console = browse(written, script, tmp_path)
    # Crowds are drawn too, dashed in gray; they belong to none of the four layers.
    assert found["high"] == {"correct": 1, "wrong": 0, "found": 1, "missed": 3}
    assert found["middle"] == {"correct": 1, "wrong": 1, "found": 1, "missed": 3}
    assert found["low"] == {"correct": 2, "wrong": 1, "found": 2, "missed": 2}
    assert [found[layer] for layer in ("correct", "wrong", "found", "missed")] == [0, 0, 0, 0]
    assert found["again"] == found["middle"]
    assert found["title"] == "own"  # no class name was executed
    assert found["option"] == ["all classes", "dog", NASTY]
    assert found["names"] == ["correct", "false positive", "found", "missed"]
    assert found["dashes"] == ["solid", "solid", "dashed", "dashed"]
    assert found["counts"] == "1 correct, 1 false positive, 3 missed"
    assert found["charts"] == 3 + 3 + 1  # the training curves, precision and recall, calibration
    assert found["pictures"] == 4
    assert found["dialog"] == 3  # the square, the crowd and the wrong box of the worst image
    assert found["fetched"] == []
    assert console == []


@needs_browser
def test_masks_are_outlined_and_labels_stay_inside_without_overlap(tmp_path):
    content = write_coco(tmp_path, 1)
    content["annotations"] = [content["annotations"][0] | {"segmentation": [[0, 0, 12, 0, 12, 9, 0, 9]]}]
    content["categories"][0]["name"] = "a name that is much wider than the image " * 4
    save_coco(tmp_path, content)
    corner = {"size": [40, 48], "counts": [0, *[9, 31] * 11, 9, 31 + 40 * 36]}
    edge = {"size": [40, 48], "counts": [40 * 40, *[9, 31] * 8]}
    rows = [(3, corner, 0.9), (3, corner, 0.8), (3, corner, 0.7), (3, edge, 0.6), (7, edge, 0.5)]
    keys = ("category_id", "segmentation", "score")
    found = [{"image_id": 100} | dict(zip(keys, row, strict=True)) for row in rows]
    write_detection_report(tmp_path / "report.html", read_coco(tmp_path), found, "segm")
    script = (
        SHOWN
        + """
    slide(0);
    document.querySelector(".item").click();
    const picture = document.querySelector("dialog svg"), parts = [...picture.children];
    const texts = [...picture.querySelectorAll("text")].filter(visible);
    const boxes = texts.map((text) => text.getBBox()).map(({ x, y, width, height }) => [x, y, width, height]);
    return { boxes, texts: texts.map((text) => text.textContent), fills: outlines(),
      stroke: texts.map((text) => getComputedStyle(text).stroke),
      order: [...new Set(parts.map((e) => e.classList[0] === "shape" ? e.classList[1] : e.classList[0]))] };"""
    )
    page, console = browse(tmp_path / "report.html", script, tmp_path)
    assert console == []
    assert page["fills"] == ["none"]
    assert set(page["stroke"]) == {"rgb(255, 255, 255)"}
    assert page["texts"][:4] == ["dog 0.90", "dog 0.80", "dog 0.70", "dog 0.60"]
    assert page["texts"][4].startswith("a name that is")
    assert page["order"] == [None, "casing", "correct", "wrong", "found"]  # then the texts, of the same classes
    for k, (x, y, width, height) in enumerate(page["boxes"]):
        assert 0 <= x <= x + width <= 48
        assert 0 <= y <= y + height <= 40
        for u, v, w, h in page["boxes"][:k]:
            assert x >= u + w or u >= x + width or y >= v + 0.9 * h or v >= y + 0.9 * height


@needs_browser
def test_sections_show_the_numbers(written, tmp_path):
    script = """
    const section = (id) => document.getElementById(id);
    const texts = (root, what) => [...root.querySelectorAll(what)].map((e) => e.textContent);
    const [losses, , , speed] = section("curves").querySelectorAll("figure");
    const wide = section("errors-by-kind").querySelector("table").parentElement;
    return {
      axis: texts(speed, "text"),
      bars: [...wide.querySelectorAll("tr")].map((row) => row.querySelectorAll("i").length),
      classes: texts(section("precision-and-recall").querySelector("figure"), "button").slice(0, 2),
      scrolls: getComputedStyle(wide).overflowX,
      single: texts(section("curves"), "figure p"),
      sorted: section("images").querySelector("p").textContent,
      verdicts: texts(section("comparison"), "td:last-child"),
    };"""
    found, _ = browse(written, script, tmp_path)
    assert "0" in found["axis"]
    assert sum(found["bars"]) == 1  # of the missed; the other kinds cost nothing
    assert found["classes"] == ["dog", NASTY]  # as in the table, though there are more objects of the other
    assert found["scrolls"] == "auto"
    assert found["single"] == ["bbox/AP 50 at step 5"]
    assert found["sorted"].startswith("4 of 4 images, sorted by F1 at a score threshold of 0.40, the lowest first.")
    assert set(found["verdicts"]) == {"not significant"}


@needs_browser
def test_nothing_is_fetched_even_without_the_content_security_policy(written, tmp_path):
    policy = re.search(r"<meta http-equiv=\"Content-Security-Policy\".*?>", written.read_text(), re.DOTALL)[0]
    assert "default-src 'none'" in policy
    assert "://" not in written.read_text()
    open_page = tmp_path / "open.html"
    open_page.write_text(written.read_text().replace(policy, ""))
    script = "document.querySelectorAll('.item').forEach((item) => item.click());"
    assert browse(open_page, f"{script} return {FETCHED};", tmp_path) == ([], [])


@needs_browser
def test_pages_of_classifiers_and_datasets(tmp_path):
    write_coco(tmp_path, 4)
    write_data_report(tmp_path / "data.html", [read_coco(tmp_path)], "own:\n  4 images")
    count = "return [document.querySelectorAll('.item image').length, document.querySelectorAll('.item .shape').length,"
    script = f"{count} document.querySelector('pre').textContent, document.querySelectorAll('.controls label').length];"
    assert browse(tmp_path / "data.html", script, tmp_path) == ([4, 8, "own:\n  4 images", 2], [])

    script = """document.querySelector(".item").click();
    const text = document.querySelector("dialog text");
    return [document.querySelector("dialog b").textContent, getComputedStyle(text).stroke, outlines()];"""
    title, halo, fills = browse(tmp_path / "data.html", SHOWN + script, tmp_path)[0]
    assert (title, halo, fills) == ("own: 0.png", "rgb(255, 255, 255)", ["none"])

    rows = [(1, [1, 0], [0.9, 0.1], 0.9), (0, [1, 0], [0.8, 0.2], 0.2), (1, [0, 1], [0.55, 0.45], 0.45)]
    keys = ("label", "labels", "scores", "true_score")
    answers = [dict(zip(keys, row, strict=True)) | {"file_name": f"{k}.png"} for k, row in enumerate(rows)]
    path = tmp_path / "classes.html"
    write_classification_report(path, "val", ["cat", NASTY], answers, lambda name: pixels(name), [{"step": 1, "lr": 1}])
    script = (
        SHOWN
        + """
    const left = () => [...document.querySelectorAll(".item")].filter(visible);
    const names = () => left().map((e) => e.querySelector(".name").textContent);
    const result = [names()];
    slide(0.7); result.push(names());
    toggle("correct"); result.push(names());
    return result;"""
    )
    found, console = browse(path, script, tmp_path)
    assert found == [["1.png", "2.png", "0.png"], ["1.png", "0.png"], ["1.png"]]  # the worst first
    assert console == []


def pixels(name: str):
    return np.asarray(draw(seed=int(name[0])))


def test_a_hundred_large_images_stay_below_8_mb(tmp_path):
    content = write_coco(tmp_path, 1)
    draw(480, 300).save(tmp_path / "images" / "0.png")  # noise, which JPEG cannot compress
    content["images"] = [{"id": k, "file_name": "0.png", "width": 480, "height": 300} for k in range(120)]
    content["annotations"] = [
        {"id": j + 1, "image_id": j % 120, "category_id": 7, "bbox": [j % 430, j % 240, 50, 60], "area": 3000}
        for j in range(120 * 20)
    ]
    save_coco(tmp_path, content)
    path = tmp_path / "report.html"
    write_detection_report(path, read_coco(tmp_path), [], "bbox")
    assert path.stat().st_size < 8_000_000
    gallery = content_of(path)["gallery"]
    assert len(gallery["images"]) == 100
    assert sum(len(image["picture"]) for image in gallery["images"]) < LARGEST


def content_of(path) -> dict:
    return json.loads(re.search(r'id="content">\n(.*?)\n</script>', path.read_text(), re.DOTALL)[1])


def test_mask_outlines_follow_their_pixels(tmp_path):
    write_coco(tmp_path, 1)
    rle = {"size": [40, 48], "counts": [10 * 40 + 8, *[20, 20] * 19, 20, 40 * 48 - 29 * 40 - 28]}
    found = [{"image_id": 100, "category_id": 3, "segmentation": rle, "score": 0.9}]
    path = tmp_path / "report.html"
    numbers = write_detection_report(path, read_coco(tmp_path), found, "segm")
    assert numbers["classes"][0]["AP"] == pytest.approx(100)
    image = content_of(path)["gallery"]["images"][0]
    assert image["predicted"][0]["box"] == [10, 8, 20, 20]
    corners = [tuple(map(float, pair.split(","))) for pair in image["predicted"][0]["path"].strip("MZ").split()]
    assert all(9.5 <= x <= 30.5 and 7.5 <= y <= 28.5 for x, y in corners)
    assert {round(x) for x, _ in corners} >= {10, 30}
    assert image["true"][0] == {"box": [10, 8, 20, 20], "path": "M10,8 30,8 30,28 10,28Z", "label": 0, "by": 0.9}


def test_page_refuses_values_that_json_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_page(tmp_path / "page.html", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
