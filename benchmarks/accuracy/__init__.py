"""AP over seeds, beside detectron2's own trainer and a bare loop over torchvision's detectors."""
