"""The commands, one module each.

Their functions import torch and what is built on it, so that --help and the error about a wrong config need not wait.
"""

import argparse


def command_parser(command: str, description: str) -> argparse.ArgumentParser:
    """A parser of the arguments of `resnet-backbones COMMAND`."""
    formatter = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"resnet-backbones {command}", description=description, formatter_class=formatter)
