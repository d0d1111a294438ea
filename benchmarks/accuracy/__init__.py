"""AP over seeds, against detectron2's own trainer and a bare loop over torchvision's detectors."""
