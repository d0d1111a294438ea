"""What a careful person would look for in detection data before training on it."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from .annotations import Annotations
from .dataset import learnable
from .images import read_image
from .similarity import SIDE, SIMILAR, most_similar, thumbnail

SMALL, MEDIUM = 32**2, 96**2  # areas in pixels, COCO's limits
EXAMPLES = 20  # files named for each finding
LEAK = 0.01  # fraction of a test set's images that may also be in the training set; one always may


@dataclass
class Images:
    """The result of decoding all images of a set: thumbnails (N, D), zero for unreadable ones, and the reasons."""

    thumbnails: np.ndarray
    unreadable: dict[str, str] = field(default_factory=dict)


def decode_all(data: Annotations, channels: int, threads: int) -> Images:
    """Read every image as the loader does, with a progress bar."""
    images = Images(np.zeros((len(data), SIDE * SIDE), np.float32))

    def decode(k: int) -> np.ndarray | str:
        try:
            return thumbnail(read_image(data.path(k), tuple(data.sizes[k].tolist()), channels))
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(max(threads, 1)) as pool:
        results = tqdm(pool.map(decode, range(len(data))), data.name, len(data), unit="image")
        for k, result in enumerate(results):
            if isinstance(result, str):
                images.unreadable[data.file_name(k)] = result
            else:
                images.thumbnails[k] = result
    return images


def describe(data: Annotations, images: Images) -> dict:
    """Counts, sizes, repairs and suspicious files of one set, JSON-serializable."""
    objects = np.bincount(data.image_index, minlength=len(data))
    areas = data.areas[~data.flat]
    same, correlations = most_similar(images.thumbnails)
    return {
        "format": data.format,
        "images": len(data),
        "objects": len(data.labels),
        "objects_to_train_on": int(data.trainable.sum()),
        "crowds": int((data.crowds == 1).sum()),
        "with_segmentation": int(data.segmentations.present.sum()),
        "classes": {name: _class_counts(data, label) for label, name in enumerate(data.classes, 1)},
        "image_sizes": [{"size": size, "images": count} for size, count in _sizes(data)],
        "box_sizes": {
            "small": int((areas < SMALL).sum()),
            "medium": int(((areas >= SMALL) & (areas < MEDIUM)).sum()),
            "large": int((areas >= MEDIUM).sum()),
        },
        "repairs": [repair._asdict() for repair in data.repairs],
        "boxes_without_area": _found(data, data.image_index[data.flat]),
        "boxes_outside_the_image": _found(data, data.image_index[~data.inside & ~data.flat]),
        "images_without_objects": _found(data, np.flatnonzero(objects == 0)),
        "missing_images": _found(data, [k for k in range(len(data)) if not data.path(k).is_file()]),
        "unreadable_images": {"count": len(images.unreadable), "examples": list(images.unreadable.values())[:EXAMPLES]},
        "near_identical_images": _pairs(data, data, np.flatnonzero(correlations > SIMILAR), same),
    }


def shared_images(one: Annotations, other: Annotations, images: Images, others: Images) -> dict:
    """The images of `one` that are nearly the same as one of `other`."""
    if one is other:
        return _found(one, range(len(one)))
    if not len(one) or not len(other):
        return _found(one, [])
    same, correlations = most_similar(images.thumbnails, others.thumbnails)
    return _pairs(one, other, np.flatnonzero(correlations > SIMILAR), same)


def check(
    train: Sequence[Annotations],
    test: Sequence[Annotations],
    *,
    masks: bool,
    channels: int,
    max_unreadable: int,
    threads: int,
) -> dict:
    """`describe` of every set, the images that pairs of sets share, and the `faults` overall."""
    sets = {data.name: data for data in [*train, *test]}
    images = {name: decode_all(data, channels, threads) for name, data in sets.items()}
    pairs = [(one, other) for k, one in enumerate(train) for other in train[:k]]
    pairs += [(one, other) for one in test for other in train]
    report = {
        "sets": {name: describe(data, images[name]) for name, data in sets.items()},
        "shared_images": [
            {"of": one.name, "in": other.name, **shared_images(one, other, images[one.name], images[other.name])}
            for one, other in pairs
        ],
    }
    return report | {"faults": faults(report, train, test, masks, max_unreadable)}


def faults(
    report: dict, train: Sequence[Annotations], test: Sequence[Annotations], masks: bool, max_unreadable: int
) -> list[str]:
    """The reasons why a training run would be wasted or refused, one line each."""
    found = []
    for data in [*train[1:], *test]:
        if data.classes != train[0].classes:
            found.append(
                f"{data.name} has other classes than {train[0].name}, or another order; set `classes` for both"
            )
    trained, tested = _objects(train, masks), _objects(test, masks)
    if not trained.total():
        found.append(f"{_names(train)}: there is no object {'with a mask ' if masks else ''}to train on")
    for name in tested if trained.total() else ():
        if not trained[name]:
            found.append(f"{_names(test)}: {tested[name]} objects are of {name}, which has none to train on")
    for role in [train, *([data] for data in test)]:
        rows = [report["sets"][data.name] for data in role]
        missing = sum(row["missing_images"]["count"] for row in rows)
        unreadable = sum(row["unreadable_images"]["count"] for row in rows) - missing
        if missing:
            found.append(f"{_names(role)}: {missing} images are missing")
        if unreadable > max_unreadable:
            limit = f"data.max_unreadable allows {max_unreadable}"
            found.append(f"{_names(role)}: {unreadable} images cannot be read; {limit}")
    tests = {data.name: len(data) for data in test}
    for pair in report["shared_images"]:
        if pair["count"] > max(LEAK * tests.get(pair["of"], np.inf), 1):
            shared = f"{pair['count']} of {tests[pair['of']]} images are in {pair['in']} as well, or nearly identical"
            found.append(f"{pair['of']}: {shared}; metrics would be too good")
    return list(dict.fromkeys(found))


def _objects(sets: Sequence[Annotations], masks: bool) -> Counter[str]:
    """The number of objects to train on of each class."""
    return Counter(data.classes[label - 1] for data in sets for label in data.labels[learnable(data, masks)].tolist())


def _class_counts(data: Annotations, label: int) -> dict[str, int]:
    rows = data.labels == label
    return {"objects": int(rows.sum()), "images": len(np.unique(data.image_index[rows]))}


def _sizes(data: Annotations) -> list[tuple[list[int], int]]:
    """The sizes of images, [width, height], and how many there are of each; the most frequent ones first."""
    sizes, counts = np.unique(data.sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:EXAMPLES]
    return [(sizes[k].tolist(), int(counts[k])) for k in order]


def _found(data: Annotations, images: Sequence[int]) -> dict:
    """How many, and the names of the first."""
    return {"count": len(images), "examples": [data.file_name(k) for k in images[:EXAMPLES]]}


def _pairs(one: Annotations, other: Annotations, images: np.ndarray, same: np.ndarray) -> dict:
    examples = [[one.file_name(k), other.file_name(same[k])] for k in images[:EXAMPLES]]
    return {"count": len(images), "examples": examples}


def _names(sets: Sequence[Annotations]) -> str:
    return ", ".join(data.name for data in sets)
