#!/usr/bin/env python3
from resnet_backbones.cli.pretrain import main

if __name__ == "__main__":
    main()
