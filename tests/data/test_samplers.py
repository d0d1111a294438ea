"""The order of training images, and the shares of an evaluation."""

import itertools

import torch

from resnet_backbones.data.samplers import TrainSampler, evaluation_indices


def batches(count: int, size: int = 12, **options) -> list[list[tuple[int, int]]]:
    def order(generator: torch.Generator) -> torch.Tensor:
        return torch.randperm(size, generator=generator)

    return list(itertools.islice(TrainSampler(order, **{"batch_size": 4, "seed": 1} | options), count))


def test_every_epoch_has_all_images_once_in_another_order():
    drawn = [index for batch in batches(6) for index, _ in batch]
    assert sorted(drawn[:12]) == sorted(drawn[12:]) == list(range(12))
    assert drawn[:12] != drawn[12:] != list(range(12))


def test_ranks_split_the_batches_of_one_process():
    whole = batches(5, batch_size=4)
    halves = [batches(5, batch_size=2, rank=rank, world_size=2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_start_continues_an_interrupted_run():
    assert batches(4, start=3) == batches(7)[3:]


def test_batches_are_wide_or_tall():
    drawn = batches(30, size=13, is_wide=lambda index: index < 5)
    assert all(len({index < 5 for index, _ in batch}) == 1 for batch in drawn)
    assert {index for batch in drawn for index, _ in batch} == set(range(13))


def test_evaluation_shares_have_every_image_once():
    shares = [evaluation_indices(10, rank, 4) for rank in range(4)]
    assert sorted(itertools.chain(*shares)) == list(range(10))
