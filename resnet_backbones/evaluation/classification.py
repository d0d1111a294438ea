"""Top-1 and top-5 accuracy of classifiers, over one or several views of each image and one or several models."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .. import distributed
from ..errors import UserError

ANSWER = ("file_name", "label", "labels", "scores", "true_score")


def score_classifiers(models: Sequence[nn.Module], loader: Iterable) -> dict[str, float]:
    """The metrics of `evaluate_classifiers`."""
    return evaluate_classifiers(models, loader)[0]


@torch.inference_mode()
def evaluate_classifiers(models: Sequence[nn.Module], loader: Iterable) -> tuple[dict[str, float], list[dict]]:
    """`top1` and `top5` in percent, the same on every rank, and on the main rank the answers for each image.

    An answer has the image's `file_name` and `label`, the five best `labels` and their `scores`, and `true_score`, that
    of its label. Restores the models' training mode.

    Args:
        models: return logits (N, K) for images (N, 3, h, w) in evaluation mode. Several models are an ensemble.
        loader: this rank's share, in batches of (views of each image as in `data.views`, dict of `labels` (N,) and
            `file_name`).

    The scores of an image are the mean softmax over all its views and all models (AlexNet §4.1, arXiv 1512.03385 §4).
    Raises `UserError` if the loader could not read any image.
    """
    device = next(models[0].parameters()).device
    in_training = [model for model in models if model.training]
    for model in models:
        model.eval()
    counts = torch.zeros(3, dtype=torch.float64)  # correct, in the top five, all
    answers = []
    for views, targets in tqdm(
        loader, desc="evaluate", unit="batch", disable=None if distributed.is_main() else True, leave=None
    ):
        labels = targets["labels"]
        probabilities = (sum(view_probabilities(model, views, device) for model in models) / len(models)).cpu()
        scores, best = probabilities.topk(min(5, probabilities.shape[1]), dim=1)
        names = targets.get("file_name", [""] * len(labels))
        true_scores = probabilities.gather(1, labels[:, None])[:, 0]
        columns = (labels.tolist(), best.tolist(), scores.tolist(), true_scores.tolist())
        answers += [dict(zip(ANSWER, row, strict=True)) for row in zip(names, *columns, strict=True)]
        hits = best == labels[:, None]
        counts += torch.tensor([hits[:, 0].sum(), hits.sum(), len(labels)])
    for model in in_training:
        model.train()
    correct, among_five, total = distributed.total(counts).tolist()
    if total == 0:
        raise UserError("No image of the validation set could be read.")
    metrics = {"top1": 100 * correct / total, "top5": 100 * among_five / total}
    return metrics, distributed.gather_results(answers)


def view_probabilities(model: nn.Module, views: Sequence[Sequence[Tensor]], device: torch.device) -> Tensor:
    """The softmax (N, K) of each of N images, averaged over its views.

    `views[n]` is a list of stacks (V, 3, h, w). If the k-th stacks of all images have the same size, they go through
    the network together.
    """
    total, count = 0.0, 0
    for stacks in zip(*views, strict=True):
        groups = [torch.cat(list(stacks))] if len({s.shape for s in stacks}) == 1 else stacks
        logits = torch.cat([model(group.to(device, non_blocking=True)) for group in groups])
        total = total + logits.float().softmax(1).reshape(len(views), -1, logits.shape[1]).sum(1)
        count += len(stacks[0])
    return total / count
