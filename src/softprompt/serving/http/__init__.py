"""An engine behind HTTP, in the forms that clients already speak."""

from .app import make_app as make_app
from .service import Service as Service
