"""The order of training images, and how evaluation is split over ranks."""

import itertools

import pytest
import torch
from conftest import read_coco, save_coco, write_coco

from resnet_backbones.data.dataset import DetectionDataset
from resnet_backbones.data.loader import build_train_loader
from resnet_backbones.data.samplers import TrainSampler, evaluation_indices, repeat_factors, repeated_order


def batches(count: int, size: int = 12, **options) -> list[list[tuple[int, int]]]:
    def order(generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(size, generator=generator)

    return list(itertools.islice(TrainSampler(order, **{"batch_size": 4, "seed": 1} | options), count))


def test_each_epoch_has_every_image_once_in_a_new_order():
    drawn = [index for batch in batches(6) for index, _ in batch]
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == list(range(12))
    assert drawn[:12] != drawn[12:] != list(range(12))


def test_ranks_split_the_batches_of_a_single_process():
    whole = batches(5, batch_size=4)
    halves = [batches(5, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_start_resumes_an_interrupted_run():
    assert batches(4, start=3) == batches(7)[3:]


def test_batches_do_not_mix_wide_and_tall_images():
    drawn = batches(30, size=13, is_wide=lambda index: index < 5)
    assert all(len({index < 5 for index, _ in batch}) == 1 for batch in drawn)
    assert {index for batch in drawn for index, _ in batch} == set(range(13))


def test_evaluation_ranks_cover_every_image_once():
    shares = [evaluation_indices(10, rank, 4) for rank in range(4)]
    assert sorted(itertools.chain(*shares)) == list(range(10))


def test_repeat_factors_follow_lvis():
    # All 100 images have class 1, four have class 2, and one of these has class 3; the last has class 1 twice.
    objects = [(k, 1) for k in range(100)] + [(k, 2) for k in (10, 20, 30, 40)] + [(40, 3), (40, 3), (99, 1)]
    images, labels = torch.tensor(objects).T
    factors = repeat_factors(images, labels, 100, threshold=0.09)
    expected = dict.fromkeys(range(100), 1.0) | {10: 1.5, 20: 1.5, 30: 1.5, 40: 3.0}  # sqrt(0.09 / share of images)
    assert factors.tolist() == pytest.approx(list(expected.values()))
    assert repeat_factors(images, labels, 101, threshold=1e-3).tolist() == [1.0] * 101  # the last has no objects

    generator = torch.Generator().manual_seed(0)
    epochs = [torch.bincount(repeated_order(factors, generator), minlength=100) for _ in range(400)]
    assert {int(epoch[10]) for epoch in epochs} == {1, 2}
    assert all(epoch[40] == 3 and epoch[50] == 1 for epoch in epochs)
    assert torch.stack(epochs)[:, [10, 20, 30]].float().mean() == pytest.approx(1.5, abs=0.05)


def test_repeat_sampling_counts_classes_across_datasets(tmp_path):
    for name, rare in (("a", 1), ("b", 2)):  # `rare` of the four images are cats, not two as in write_coco
        content = write_coco(tmp_path / name)
        for k, annotation in enumerate(content["annotations"][::2]):
            annotation["category_id"] = 7 if k < rare else 3
        save_coco(tmp_path / name, content)
    sets = [read_coco(tmp_path / "a"), read_coco(tmp_path / "b")]
    dataset = DetectionDataset(sets, train=True, repeat_threshold=1.0)
    order = torch.cat([dataset.order(torch.Generator().manual_seed(k)) for k in range(200)])
    cats, dogs = (8 / 3) ** 0.5, (8 / 5) ** 0.5
    expected = [cats, dogs, dogs, dogs, cats, cats, dogs, dogs]
    assert (torch.bincount(order) / 200).tolist() == pytest.approx(expected, abs=0.15)
    loader = build_train_loader(dataset, 1, num_workers=0, seed=0)
    drawn = dataset.order(torch.Generator().manual_seed(0)).tolist()
    names = [targets[0]["file_name"] for _, targets in itertools.islice(loader, len(drawn))]
    assert len(drawn) > 8
    assert names == [dataset.path(k) for k in drawn]
