"""Floor 6: what a trained prompt has become."""

from .look import look as look
