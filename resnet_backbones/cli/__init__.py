"""The commands, one module each.

torch and what is built on it are imported inside functions, so that --help and config errors do not wait for them.
"""

import argparse


def command_parser(command: str, description: str) -> argparse.ArgumentParser:
    """The argument parser of `resnet-backbones COMMAND`."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"resnet-backbones {command}", description=description, formatter_class=formatter)
