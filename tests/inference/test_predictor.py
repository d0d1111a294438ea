"""`Predictor`: the same detections as the detector itself, for images of any type, in any thread."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import draw
from helpers import save_detector
from omegaconf import OmegaConf
from PIL import Image

from resnet_backbones import Predictor
from resnet_backbones.classifiers import build_classifier
from resnet_backbones.errors import UserError
from resnet_backbones.evaluation.detection import encode_masks
from resnet_backbones.preprocessing import Preprocessing
from resnet_backbones.weights import metadata_of, save_safetensors

KINDS = {
    "mask_rcnn": [],
    "retinanet": ["backbone.out_features=[p3, p4, p5, p6, p7]"],
    "fcos": ["backbone.out_features=[p3, p4, p5, p6, p7]", "backbone.fpn_channels=64"],
}


@pytest.fixture(scope="module")
def mask_rcnn(tmp_path_factory):
    return save_detector(tmp_path_factory.mktemp("mask_rcnn"))


@pytest.mark.parametrize("name", KINDS)
def test_detections_match_the_detector(tmp_path, name):
    model, path = save_detector(tmp_path, name, *KINDS[name])
    image = draw(90, 70)
    found = Predictor(path, score_threshold=0.0)(image)
    with torch.no_grad():
        expected = model([torch.from_numpy(np.array(image)).permute(2, 0, 1)])[0]
    assert len(found) == 7
    np.testing.assert_allclose(found.boxes, expected["boxes"].numpy(), atol=1e-3)
    np.testing.assert_allclose(found.scores, expected["scores"].numpy(), atol=1e-5)
    assert found.labels.tolist() == expected["labels"].tolist()
    assert found.names == [["dog", "cat"][label - 1] for label in found.labels]
    if name == "mask_rcnn":
        assert found.masks.shape == (7, 70, 90)
        differing = found.masks != (expected["masks"][:, 0] >= 0.5).numpy()
        assert differing.mean() < 1e-4
    else:
        assert found.masks is None


def test_masks_are_encoded_as_torchvision_pastes_them(mask_rcnn):
    model, _ = mask_rcnn
    from resnet_backbones.inference.masks import paste

    images = [torch.rand(3, 57, 83)]
    with torch.no_grad():
        pasted = model(images)[0]["masks"]
        model.transform.paste_masks = False
        output = model(images)[0]
        model.transform.paste_masks = True
    assert paste(output["mask_crops"], output["boxes"], (0, 0), (57, 83)) == encode_masks(pasted)


def test_every_image_type_gives_the_same_detections(mask_rcnn, tmp_path):
    predict = Predictor(mask_rcnn[1], score_threshold=0.0)
    image = draw(64, 48)
    array = np.array(image)
    image.save(tmp_path / "a.png")
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = [image, array, tensor, tensor / 255, tensor.double() / 255, str(tmp_path / "a.png"), tmp_path / "a.png"]
    forms += [np.ascontiguousarray(array[:, ::-1])[:, ::-1], np.asfortranarray(array)]  # with other strides
    first, *others = predict(forms)
    for other in others:
        np.testing.assert_allclose(other.boxes, first.boxes, atol=1e-3)
        assert other.labels.tolist() == first.labels.tolist()
    gray = predict([image.convert("L"), np.array(image.convert("L"))])
    np.testing.assert_array_equal(gray[0].boxes, gray[1].boxes)
    assert predict([]) == []
    gray_16 = Image.fromarray(np.array(image.convert("L")).astype(np.uint16) * 257)
    gray_16.save(tmp_path / "16 bits.png")
    by_path, by_pil, by_8_bits = predict([tmp_path / "16 bits.png", gray_16, image.convert("L")])
    np.testing.assert_array_equal(by_pil.boxes, by_path.boxes)
    np.testing.assert_allclose(by_pil.boxes, by_8_bits.boxes, atol=1e-3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "An image must be a path, a PIL image, an array or a tensor, not a int."),
        (np.zeros((8, 8, 3)), r"An array of shape \(8, 8, 3\) and float64 .* give \(H, W, 3\) of uint8, RGB"),
        (np.zeros((8, 8, 4), np.uint8), r"shape \(8, 8, 4\)"),
        (torch.zeros(8, 8, 3), r"shape \(8, 8, 3\) is not an image; this network takes \(3, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.int32), "torch.int32 has no known range"),
        (torch.full((3, 8, 8), 200.0), r"values from 200 to 200, of torch.float32; give uint8, or float in \[0, 1\]"),
        (torch.full((3, 8, 8), torch.nan), "values from nan to nan"),
        ("nowhere.png", "The image nowhere.png does not exist"),
    ],
)
def test_invalid_images_are_refused(mask_rcnn, image, message):
    with pytest.raises(UserError, match=message):
        Predictor(mask_rcnn[1])(image)


def test_truncated_pil_image_is_refused(mask_rcnn, tmp_path):
    draw(64, 64).save(tmp_path / "a.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(UserError, match="half.png cannot be decoded: "):
        Predictor(mask_rcnn[1])(Image.open(tmp_path / "half.png"))


def test_extreme_image_sizes(mask_rcnn):
    for size in ((1, 1), (1, 3000), (3000, 1)):
        found = Predictor(mask_rcnn[1], score_threshold=0.0)(draw(*size))
        assert found.size == size[::-1]
        assert (found.boxes >= 0).all()
        assert (found.boxes <= np.array([*size, *size])).all()
        assert found.masks.shape[1:] == size[::-1]


def test_batches_and_threads_give_the_same_detections_as_single_images(mask_rcnn):
    predict = Predictor(mask_rcnn[1], score_threshold=0.0, batch_size=3)
    images = [draw(40 + 8 * (k % 3), 56, seed=k) for k in range(9)]
    alone = [predict(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(predict, images))
    for together in (predict(images), threaded):
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.boxes, other.boxes, atol=1e-2)
            assert one.labels.tolist() == other.labels.tolist()


def test_score_thresholds_per_class(mask_rcnn):
    everything = Predictor(mask_rcnn[1], score_threshold=0.0)(draw())
    best = everything.names[0]
    scores = everything.scores[np.array(everything.names) == best]
    least = float(scores[:4].mean())
    found = Predictor(mask_rcnn[1], score_threshold={"dog": 1.0, "cat": 1.0, best: least})(draw())
    assert found.names == [best] * int((scores >= least).sum())
    assert len(found.rles) == len(found) < len(everything)
    with pytest.raises(UserError, match="Unknown class 'dogs'. Did you mean dog?"):
        Predictor(mask_rcnn[1], score_threshold={"dogs": 0.5})
    with pytest.raises(UserError, match="score_threshold of dog is 2"):
        Predictor(mask_rcnn[1], score_threshold=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"amp": "fp8"}, "Unknown amp 'fp8'"),
        ({"tile": 0}, "tile is 0"),
        ({"tile": "640"}, "tile is '640'"),
        ({"overlap": "0.2"}, "overlap is '0.2'"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"score_threshold": "0.5"}, "score_threshold of dog is '0.5'"),
        ({"classes": ["dog", "dog"]}, "classes has 'dog' more than once"),
        ({"classes": "dog"}, "classes is 'dog'; it must be a list"),
        ({"config": "my.yaml"}, r'give its content: resnet_backbones.config.load_config\("my.yaml"\)'),
        ({"config": {}}, "has no config.backbone.name"),
        ({"overlap": 1.0}, "overlap is 1.0; it must be at least 0 and less than 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"device": "gpu"}, "device gpu cannot be used here"),
        ({"device": "meta"}, "device meta cannot be used here"),
    ],
)
def test_invalid_options_are_refused(mask_rcnn, options, message):
    with pytest.raises(UserError, match=message):
        Predictor(mask_rcnn[1], **options)


def test_mixed_precision_gives_similar_scores(mask_rcnn):
    exact, mixed = (Predictor(mask_rcnn[1], score_threshold=0.0, amp=amp)(draw()) for amp in ("none", "bf16"))
    assert mixed.boxes.dtype == mixed.scores.dtype == np.float32
    np.testing.assert_allclose(np.sort(mixed.scores), np.sort(exact.scores), atol=0.05)


def test_checkpoint_without_metadata_error_says_what_is_needed(tmp_path):
    model, path = save_detector(tmp_path)
    bare = str(tmp_path / "bare.pt")
    torch.save({"model": model.state_dict()}, bare)
    with pytest.raises(UserError, match=r"bare.pt does not say .* give the YAML .* \(config\) .* \(classes\)"):
        Predictor(bare)
    metadata = torch.load(path, weights_only=True)["metadata"]
    expected = Predictor(path)(draw())
    for config in (metadata["config"], OmegaConf.create(metadata["config"])):
        found = Predictor(tmp_path / "bare.pt", config=config, classes=["dog", "cat"])(draw())
        np.testing.assert_array_equal(found.boxes, expected.boxes)
    del metadata["config"]
    torch.save({"model": model.state_dict(), "metadata": metadata}, bare)
    with pytest.raises(UserError, match=r"bare.pt cannot be loaded as a classifier .* give the YAML .* \(config\)"):
        Predictor(bare)


def test_a_classifier_without_preprocessing_is_refused(tmp_path):
    model = build_classifier("cifar_plain20", 8)
    save_safetensors(tmp_path / "model.safetensors", model.state_dict(), metadata_of(model))
    with pytest.raises(UserError, match="does not say how images are normalized for it; `resnet-backbones convert"):
        Predictor(tmp_path / "model.safetensors")


def test_classifiers_return_the_top_5_classes(tmp_path):
    classes = [f"class {k}" for k in range(8)]
    model = build_classifier("resnet18", 8, preprocessing=Preprocessing(resize=40, size=32)).eval()
    model.classes = classes
    save_safetensors(tmp_path / "model.safetensors", model.state_dict(), metadata_of(model) | {"classes": classes})
    predict = Predictor(str(tmp_path / "model.safetensors"))
    image = Image.fromarray(np.full((40, 60, 3), 99, np.uint8))
    found, other = predict([image, draw(30, 70)])
    with torch.no_grad():
        scores = model(torch.full((1, 3, 32, 32), 99, dtype=torch.uint8)).softmax(1)[0]
    np.testing.assert_allclose(found.scores, scores.topk(5).values.numpy(), atol=1e-5)
    assert found.labels.tolist() == scores.topk(5).indices.tolist()
    assert found.names == [classes[k] for k in found.labels]
    assert (found.size, other.size) == ((40, 60), (70, 30))
