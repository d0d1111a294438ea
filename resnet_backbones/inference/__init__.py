"""Prediction: a checkpoint on any image, in Python (`Predictor`) and on any number of files (`files`)."""

from .detections import Classification, Detections
from .predictor import Predictor

__all__ = ["Classification", "Detections", "Predictor"]
