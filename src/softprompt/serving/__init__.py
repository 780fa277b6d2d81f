"""Floor 5: a trained adapter at work: rows in, predictions out."""

from .predict import Predictor as Predictor
