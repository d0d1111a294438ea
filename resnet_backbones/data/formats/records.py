"""Records from objects whose classes have names instead of numbers."""

from collections.abc import Iterable


def numbered(images: list[dict], objects: list[dict], names: Iterable[str]) -> dict:
    """The content of an instances file from `objects` whose `category_id` is one of `names`; ids count from 1."""
    ids = {name: k for k, name in enumerate(names, 1)}
    return {
        "images": images,
        "annotations": [o | {"id": k, "category_id": ids[o["category_id"]]} for k, o in enumerate(objects, 1)],
        "categories": [{"id": k, "name": name} for name, k in ids.items()],
    }
