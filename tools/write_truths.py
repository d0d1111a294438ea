#!/usr/bin/env python3
from resnet_backbones.cli.write_truths import main

if __name__ == "__main__":
    main()
