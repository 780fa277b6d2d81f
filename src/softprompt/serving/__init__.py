"""Floor 5: a trained adapter at work: rows in, predictions out; and its folder in the form that others read."""

from .forms import compile_adapter as compile_adapter
from .forms import export_adapter as export_adapter
from .predict import Predictor as Predictor
