"""Prediction: a checkpoint on any picture, in Python (`Predictor`) and for files of any number (`files`)."""

from .detections import Classification, Detections
from .predictor import Predictor

__all__ = ["Classification", "Detections", "Predictor"]
