"""`resnet-backbones predict`: inputs, output files and resuming."""

import csv
import io
import json
import os
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from conftest import draw, write_coco
from helpers import png_of, predicted_images, write_video
from PIL import Image

from resnet_backbones import Predictor
from resnet_backbones.__main__ import main
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.preprocessing import Preprocessing
from resnet_backbones.weights import metadata_of, save_safetensors


def read(folder, name):
    return json.loads((folder / "out" / name).read_text())


def test_a_folder_gives_predictions_drawn_images_and_a_csv(tmp_path, predict, detector_weights):
    write_coco(tmp_path, 3)
    (tmp_path / "images/deep").mkdir()
    draw(200, 300).save(tmp_path / "images/deep/Photo.JPG")
    (tmp_path / "images/._1.png").write_bytes(b"a stray of macOS")
    (tmp_path / "images/notes.txt").write_text("no image")
    status, out, _ = predict(tmp_path / "images", "--csv", "--score-threshold", "0")
    assert status == 0
    assert "4 images, 28 results" in out
    assert predicted_images(tmp_path) == ["0.png", "1.png", "2.png", "deep/Photo.JPG"]
    results, index = read(tmp_path, "predictions.json"), read(tmp_path, "images.json")
    assert [c["name"] for c in index["categories"]] == ["dog", "cat"]
    expected = Predictor(detector_weights, score_threshold=0.0)(tmp_path / "images/2.png")
    found = [result for result in results if result["image_id"] == index["images"][2]["id"]]
    np.testing.assert_allclose([r["score"] for r in found], expected.scores, atol=1e-5)
    corners = [[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in found)]
    np.testing.assert_allclose(corners, expected.boxes, atol=1e-3)
    assert [r["category_id"] for r in found] == expected.labels.tolist()
    assert [r["segmentation"] for r in found] == expected.rles
    assert Image.open(tmp_path / "out/images/deep/Photo.JPG").size == (480, 720)
    enlarged = np.array(draw(seed=2).resize((576, 480), Image.Resampling.BICUBIC))
    changed = (np.array(Image.open(tmp_path / "out/images/2.png")) != enlarged).any(2)
    drawn = np.zeros_like(changed)
    for x0, y0, x1, y1 in (12 * np.array(corners)).round().astype(int):
        assert changed[(y0 + y1) // 2, x0 - 1 : x0 + 2].any()  # the left side
        drawn[y0 - 16 : y1 + 3, x0 - 2 : x1 + 3] = True  # the box and its label
    assert not changed[~drawn].any()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out/predictions.csv").read_text())))
    assert len(rows) == 28
    assert (rows[-1]["file_name"], rows[-1]["class"] in ("dog", "cat")) == ("deep/Photo.JPG", True)
    assert sorted(os.listdir(tmp_path / "out")) == ["images", "images.json", "predictions.csv", "predictions.json"]


def test_predictions_use_the_ids_of_the_ground_truth(tmp_path, predict, capfd):
    write_coco(tmp_path, 3)
    draw().save(tmp_path / "images/another.png")
    truth = tmp_path / "instances.json"
    status, _, err = predict(tmp_path / "images", "--ground-truth", truth)
    assert (status, err.splitlines()[-1]) == (0, f"1 inputs are not images of {truth} and are left out")
    assert [image["id"] for image in read(tmp_path, "images.json")["images"]] == [100, 101, 102]
    assert {r["category_id"] for r in read(tmp_path, "predictions.json")} <= {7, 3}
    main(["evaluate", "--ground-truth", str(truth), "--predictions", str(tmp_path / "out/predictions.json")])
    assert "bbox/AP" in capfd.readouterr().out

    content = json.loads(truth.read_text())
    content["categories"][1]["name"] = "wolf"
    truth.write_text(json.dumps(content))
    status, _, err = predict(tmp_path / "images", "--ground-truth", truth)
    assert (status, "has no category 'dog', which the checkpoint predicts; its categories: wolf, cat" in err) == (
        2,
        True,
    )


def test_globs_lists_urls_and_duplicate_names(tmp_path, predict, monkeypatch, standard_input):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        draw().save(tmp_path / folder / "1.png")
    draw().save(tmp_path / "a/2.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    standard_input(f"{tmp_path}/b/1.png\n\nnot there.png\nempty/\nhttp://[::1/x.jpg\n".encode())
    status, out, err = predict("a/*.png", "-", "a/1.png")
    assert status == 0
    below = str(tmp_path.resolve())[1:]
    assert predicted_images(tmp_path) == [f"{below}/a/1.png", "2.png", f"{below}/b/1.png"]
    assert "3 images" in out
    assert "3 could not be read" in out
    assert "not there.png does not exist" in out + err
    assert "The image empty/ is a folder" in out + err
    assert "http://[::1/x.jpg cannot be fetched: Invalid IPv6 URL" in out + err


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_lists_and_file_names_in_any_encoding(tmp_path, predict, standard_input, encoding):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/") + ("é.png" if encoding != "latin-1" else os.fsdecode(b"\xe9.png"))
    draw().save(path)
    standard_input(os.fsencode(path) if encoding == "latin-1" else f"{path}\r\n".encode(encoding))
    output = str(tmp_path / os.fsdecode(b"results\xff"))
    status, out, _ = predict("-", "--csv", "--output", output)
    assert (status, "results\\udcff/predictions.json" in out) == (0, True)
    with open(f"{output}/predictions.csv", errors="surrogateescape") as file:
        assert {row["file_name"] for row in csv.DictReader(file)} == {os.path.basename(path)}
    assert os.listdir(f"{output}/images") == [os.path.basename(path)]


def test_similar_file_names_do_not_collide(tmp_path, predict):
    (tmp_path / "many").mkdir()
    names_given = ["x.bmp", "x.bmp.png", f"{'l' * 251}.bmp", f"{'ü' * 125}1.gif", f"{'ü' * 125}2.gif"]
    for name in names_given:
        draw().save(tmp_path / "many" / name)
    status, out, _ = predict(tmp_path / "many")
    assert (status, "5 images" in out) == (0, True)
    assert predicted_images(tmp_path) == sorted(names_given)
    pictures = sorted((tmp_path / "out/images").iterdir())
    assert [Image.open(path).format for path in pictures] == ["PNG"] * 5
    assert [path.name for path in pictures if len(path.name) < 99] == ["x.bmp.png", "x.bmp.png.png"]


def test_urls_are_fetched(tmp_path, predict, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))  # iopath's
    draw().save(tmp_path / "1 a.png")
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        status, out, _ = predict(f"{address}/1%20a.png", f"{address}/2.png")
        server.shutdown()
    assert status == 0
    assert "1 images" in out
    assert "1 could not be read" in out
    assert predicted_images(tmp_path) == ["1 a.png"]


def test_drawn_images_of_an_earlier_run_are_not_inputs(tmp_path, predict):
    draw().save(tmp_path / "1.png")
    for _ in range(2):
        assert predict(tmp_path)[0] == 0
        assert predicted_images(tmp_path) == ["1.png"]


def test_per_class_thresholds_are_read_from_a_report(tmp_path, predict):
    write_coco(tmp_path, 1)
    (tmp_path / "report.json").write_text(json.dumps({"thresholds": {"dog": 1.0, "cat": 1.0}}))
    assert predict(tmp_path / "images", "--score-threshold", tmp_path / "report.json")[0] == 0
    assert read(tmp_path, "predictions.json") == []
    (tmp_path / "report.json").write_text(json.dumps({"classes": {}}))
    status, _, err = predict(tmp_path / "images", "--score-threshold", tmp_path / "report.json")
    assert (status, 'report.json has no "thresholds", a mapping' in err) == (2, True)
    (tmp_path / "report.json").write_text(json.dumps({"thresholds": {"cow": 0.5}}))
    status, _, err = predict(tmp_path / "images", "--score-threshold", tmp_path / "report.json")
    assert (status, "report.json: score_threshold: Unknown class 'cow'" in err) == (2, True)


def test_a_classifier_gives_a_score_per_class(tmp_path, predict):
    model = build_classifier("resnet18", 3, preprocessing=Preprocessing(resize=40, size=32)).eval()
    metadata = metadata_of(model) | {"classes": ["a", "b", "c"]}
    save_safetensors(tmp_path / "model.safetensors", model.state_dict(), metadata)
    write_coco(tmp_path, 2)
    status, _, _ = predict(tmp_path / "images", "--csv", weights=str(tmp_path / "model.safetensors"))
    assert status == 0
    results = read(tmp_path, "predictions.json")
    assert [r["image_id"] for r in results] == [1, 1, 1, 2, 2, 2]
    assert sum(r["score"] for r in results[:3]) == pytest.approx(1, abs=1e-5)
    assert {r["category_id"] for r in results[:3]} == {1, 2, 3}
    assert Image.open(tmp_path / "out/images/0.png").size == (576, 480)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png"], "Input nowhere.png does not exist (looked for "),
        (["empty"], "The folder empty has no images (.apng, "),
        (["*.nothing"], "No image or video matches *.nothing."),
        (["text.png"], "None of the 1 inputs can be read; the log says why."),
        (["-"], "Standard input lists no paths."),
        (["other/images", "--output", "other"], "All inputs are in other, where the results go; choose another"),
        (["one.png", "--output", ""], "--output is empty"),
        (["one.png", "--device", "meta"], "device meta cannot be used here: "),
        (["one.png", "--classes", "dog,dog"], "classes has 'dog' more than once"),
        (["one.png", "--classes", ","], "classes is ['', '']; it must be a list of names"),
        (["one.png", "--ground-truth", "no_images.json"], "no_images.json, which has none."),
        (["one.png", "--tile", "-3"], "tile is -3; it must be at least 1 pixel."),
        (["one.png", "--ground-truth", "none.json"], "The annotation file none.json does not exist"),
        (["one.png", "--output", "other"], "other/images is not from an earlier prediction; choose another --output."),
    ],
)
def test_bad_inputs_end_in_a_one_line_error(tmp_path, predict, monkeypatch, standard_input, arguments, message):
    monkeypatch.chdir(tmp_path)
    standard_input(b"\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other/images").mkdir(parents=True)
    (tmp_path / "text.png").write_text("text")
    dogs_and_cats = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    (tmp_path / "no_images.json").write_text(json.dumps({"images": [], "annotations": [], "categories": dogs_and_cats}))
    draw(1, 1).save(tmp_path / "other/images/1.png")
    draw(1, 1).save(tmp_path / "one.png")
    status, _, err = predict(*arguments)
    assert status == 2
    assert message in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["text.png"], "Image text.png cannot be decoded: it is not an image."),
        (["huge.png"], "20000 x 20000 pixels, over the limit of 134217728; cut it into several. In tiles (--tile 640)"),
        (["huger.png", "--tile", "640"], "30000 x 20000 pixels, over the limit of 536870912; cut it into several.\n"),
        (["text.mp4"], "Video text.mp4 cannot be read: Invalid data found"),
        (["sound.mp4"], "Video sound.mp4 has no video stream."),
    ],
)
def test_the_reason_for_an_unreadable_input_is_given_once(tmp_path, predict, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "text.mp4").write_text("text")
    (tmp_path / "huge.png").write_bytes(png_of(20_000, 20_000))
    (tmp_path / "huger.png").write_bytes(png_of(30_000, 20_000))
    write_sound(tmp_path / "sound.mp4")
    status, out, err = predict(*arguments)
    assert status == 2
    assert (out + err).count(message) == 1


FOREIGN = {
    "images.json": json.dumps({"images": [], "annotations": [], "categories": []}),
    "predictions.json": "[]",
    "predictions.jsonl": '{"mine": 1}\n',
    "predictions.csv": "mine",
    "images/a.png": "an original",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_files_not_written_by_predict_are_not_replaced(tmp_path, predict, name):
    draw().save(tmp_path / "a.png")
    (tmp_path / "out/images").mkdir(parents=True)
    for other in {"images/a.png", name}:
        (tmp_path / "out" / other).write_text(FOREIGN[other])
    status, _, err = predict(tmp_path / "a.png", "--csv")
    assert (status, "is not from an earlier prediction" in err) == (2, True)
    assert (tmp_path / "out" / name).read_text() == FOREIGN[name]
    assert (tmp_path / "out/images/a.png").read_text() == "an original"


def test_bare_weights_need_a_config_and_classes(tmp_path, predict, detector_weights):
    write_coco(tmp_path, 1)
    content = torch.load(detector_weights, weights_only=True)
    torch.save({"model": content["model"]}, tmp_path / "bare.pt")
    status, _, err = predict(tmp_path / "images", weights=str(tmp_path / "bare.pt"))
    assert (status, "give the YAML that it was trained with (config) and the names" in err) == (2, True)
    from omegaconf import OmegaConf

    (tmp_path / "own.yaml").write_text(OmegaConf.to_yaml(content["metadata"]["config"]))
    known = ["--config", tmp_path / "own.yaml", "--classes", "dog,cat"]
    assert predict(tmp_path / "images", *known, weights=str(tmp_path / "bare.pt"))[0] == 0
    assert len(read(tmp_path, "predictions.json")) == 7


def test_unreadable_images_are_skipped_and_counted(tmp_path, predict):
    write_coco(tmp_path, 4)
    (tmp_path / "images/1.png").write_bytes((tmp_path / "images/1.png").read_bytes()[:99])
    status, out, err = predict(tmp_path / "images")
    assert status == 0
    assert "3 images" in out
    assert "1 could not be read" in out
    assert "1.png cannot be decoded" in out + err
    assert predicted_images(tmp_path) == ["0.png", "2.png", "3.png"]


def write_sound(path):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16_000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))


def frames_of(path):
    import av

    with av.open(str(path)) as video:
        return [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]


def test_a_video_gives_predictions_per_frame_and_a_drawn_video(tmp_path, predict):
    write_video(tmp_path / "clip.mkv.mp4")
    status, out, _ = predict(tmp_path / "clip.mkv.mp4", "--score-threshold", "0")
    assert status == 0
    assert "12 images, 84 results" in out
    assert predicted_images(tmp_path) == [f"clip.mkv.mp4/{k:06}" for k in range(12)]
    frames = frames_of(tmp_path / "out/videos/clip.mkv.mp4")
    assert len(frames) == 12
    assert frames[0].shape[0] == 480
    assert [int(np.median(frame)) // 20 for frame in frames] == list(range(12))


def test_a_truncated_video_keeps_the_results_of_its_readable_frames(tmp_path, predict):
    write_video(tmp_path / "clip.mp4", 40)
    content = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "clip.mp4").write_bytes(content[: len(content) * 2 // 3])
    status, out, err = predict(tmp_path / "clip.mp4")
    done = len(predicted_images(tmp_path))
    assert status == 0
    assert 5 < done < 40
    assert f"clip.mp4 breaks off after {done} of 40 frames" in out + err
    assert len(frames_of(tmp_path / "out/videos/clip.mp4")) == done
