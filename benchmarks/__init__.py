"""What `tools/benchmark.py` measures: ours beside torchvision, detectron2 and timm, in turns within one process."""
