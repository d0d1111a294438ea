#!/usr/bin/env python3
"""Set-up time and memory of a large COCO file: ours, pycocotools' in-memory COCO, and detectron2's serialized list.

benchmarks/annotations.py [--annotations 1000000] [--workers 2] [--json FILE]

Each runs in its own process. It reads the file and forks workers, as a loader does, and each worker goes through all
images once. Memory is USS, the pages that a worker shares with no other process, after the first 1 % of the epoch and
at its end.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PER_IMAGE = 8


def write_annotations(path: Path, count: int) -> None:
    """A COCO file: 8 objects per image, polygons with 10 to 40 corners, 80 categories."""
    rng = np.random.default_rng(0)
    images = [{"id": k, "file_name": f"{k:012d}.jpg", "width": 640, "height": 480} for k in range(count // PER_IMAGE)]
    with open(path, "w") as file:
        categories = [{"id": k, "name": f"c{k}"} for k in range(1, 81)]
        file.write(json.dumps({"images": images, "categories": categories})[:-1] + ', "annotations": [')
        for k in range(count):
            x, y = rng.integers(0, 400, 2).tolist()
            polygon = (rng.integers(0, 8000, 2 * int(rng.integers(10, 41))) / 100).round(2).tolist()
            o = {"id": k + 1, "image_id": k // PER_IMAGE, "category_id": k % 80 + 1, "bbox": [x, y, 80, 80]}
            file.write((", " if k else "") + json.dumps(o | {"area": 6400, "iscrowd": 0, "segmentation": [polygon]}))
        file.write("]}")


def ours():
    from resnet_backbones.data.cleaning import clean
    from resnet_backbones.data.json_file import read_json, without_garbage_collection

    def load(path: Path):
        with without_garbage_collection():
            data = clean("generated", "coco", None, read_json(str(path)))
        return len(data), data.objects

    return load


def pycocotools():
    from pycocotools.coco import COCO

    def load(path: Path):
        coco = COCO(str(path))
        ids = list(coco.imgs)
        return len(ids), lambda k: coco.loadAnns(coco.getAnnIds(imgIds=ids[k]))

    return load


def detectron2():
    from detectron2.data.common import DatasetFromList
    from detectron2.data.datasets import load_coco_json

    def load(path: Path):
        data = DatasetFromList(load_coco_json(str(path), str(path.parent)), copy=False, serialize=True)
        return len(data), lambda k: data[k]

    return load


def own_mib() -> float:
    """The memory of this process that it shares with no other."""
    rows = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(row[1]) for row in rows if row[0].startswith("Private")) / 1024


def go_through(count: int, read, results) -> None:
    first = 0.0
    for k in range(count):
        read(k)
        if k == count // 100:
            first = own_mib()
    results.put((first, own_mib()))


def measure(make, path: Path, workers: int, pipe) -> None:
    load = make()  # imports are not timed
    start = time.perf_counter()
    count, read = load(path)
    seconds, size = time.perf_counter() - start, own_mib()
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=go_through, args=(count, read, results)) for _ in range(workers)]
    for process in processes:
        process.start()
    first, last = np.array([results.get() for _ in processes]).mean(0).tolist()
    pipe.send({"seconds": seconds, "main_mib": size, "worker_mib_start": first, "worker_mib_end": last})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args(argv)
    benchmarks = str(Path(__file__).parent)
    sys.path[:] = [path for path in sys.path if path != benchmarks]  # its detectron2.py would hide the library
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        write_annotations(path, args.annotations)
        print(f"{args.annotations} annotations, {path.stat().st_size >> 20} MiB of JSON, {os.cpu_count()} cores")
        for make in (ours, pycocotools, detectron2):
            here, there = multiprocessing.Pipe()
            job = {"target": measure, "args": (make, path, args.workers, there)}
            process = multiprocessing.get_context("spawn").Process(**job)
            process.start()
            there.close()
            try:
                rows[make.__name__] = row = here.recv()
            except EOFError:
                print(f"{make.__name__:<12} failed, see the error above")
                continue
            growth = row["worker_mib_end"] - row["worker_mib_start"]
            print(
                f"{make.__name__:<12} set-up {row['seconds']:6.1f} s, main {row['main_mib']:6.0f} MiB, a worker "
                f"{row['worker_mib_start']:6.0f} MiB, after an epoch {row['worker_mib_end']:6.0f} MiB ({growth:+.0f})"
            )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
