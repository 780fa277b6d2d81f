"""The kinds of tasks by name; a further kind is a file beside this one and a line here."""

from __future__ import annotations

from ._base import Kind
from .chat import Chat
from .classification import Classification
from .completion import Completion
from .multilabel import Multilabel
from .regression import Regression
from .tokens import Tokens

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Classification(), Multilabel(), Regression(), Completion(), Chat(), Tokens())
}
COLUMNS = tuple(dict.fromkeys(column for kind in KINDS.values() for column in kind.columns))
