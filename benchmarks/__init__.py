"""Side-by-side measurements: ours against torchvision, detectron2 and timm, in turns within one process."""
