#!/usr/bin/env python3
from resnet_backbones.cli.train_detectron2 import main

if __name__ == "__main__":
    main()
