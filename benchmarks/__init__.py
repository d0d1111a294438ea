"""Side-by-side measurements: ours beside torchvision, detectron2 and timm, in turns within one process."""
