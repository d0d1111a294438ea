#!/usr/bin/env python3
"""Pack labeled images into WebDataset shards, which `resnet-backbones pretrain` and the webdataset library read.

    datasets/write_shards.py --root imagenet --split train --output shards [--size 1000]

Writes shards/train-000000.tar … of `--size` images each in random order, classes.txt, and index.json as widsindex
does. Image files are copied unchanged.
"""

import argparse
import io
import json
import tarfile
from pathlib import Path

import torch

from resnet_backbones.data.imagenet import load_images
from resnet_backbones.errors import UserError, one_line_errors


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="a folder or tar of images, like data.root")
    parser.add_argument("--split", required=True, help="its training or validation folder, like data.train")
    parser.add_argument("--output", required=True, type=Path, help="the folder for the shards")
    parser.add_argument("--size", type=int, default=1000, help="images per shard")
    parser.add_argument("--seed", type=int, default=0, help="of the random order")
    args = parser.parse_args(argv)
    with one_line_errors():
        if args.size < 1:
            raise UserError(f"--size is {args.size}; a shard needs at least one image.")
        args.output.mkdir(parents=True, exist_ok=True)
        names = args.output / "classes.txt"
        images = load_images(args.root, args.split, names.read_text().split("\n")[:-1] if names.exists() else None)
        names.write_text("".join(f"{name}\n" for name in images.classes))
        index = args.output / "index.json"
        listed = json.loads(index.read_text())["shardlist"] if index.exists() else []
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(args.seed)).split(args.size)
        for k, chosen in enumerate(order):
            path = args.output / f"{args.split}-{k:06}.tar"
            with tarfile.open(path, "w") as tar:
                for sample in chosen.tolist():
                    content, label, name = images.read(sample)
                    add(tar, f"{sample:09}{Path(name).suffix.lower()}", content)
                    add(tar, f"{sample:09}.cls", str(label).encode())
            listed = [row for row in listed if row["url"] != path.name]
            listed.append({"url": path.name, "nsamples": len(chosen)})
        written = {"__kind__": "wids-shard-index-v1", "wids_version": 1, "shardlist": listed}
        index.write_text(json.dumps(written, indent=2) + "\n")
        print(f"{len(images)} images of {len(images.classes)} classes in {len(order)} shards of {args.output}:")
        print(f"'data.root={args.output}' 'data.{args.split}={args.split}-{{000000..{len(order) - 1:06}}}.tar'")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


if __name__ == "__main__":
    main()
