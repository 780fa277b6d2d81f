"""Which object a name of a package's face is, where a file beside it has the same name (`methods.ept` and `methods/ept.py`)."""

from typing import Any

import griffe


class Faces(griffe.Extension):
    """Read ``softprompt.ept`` as the function; griffe takes the file of that name."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for name, member in list(pkg.members.items()):
            if not isinstance(member, griffe.Alias) or not member.target_path.startswith(f"{pkg.name}."):
                continue
            target = pkg.members[member.target_path.split(".")[1]].members.get(name)
            if isinstance(target, griffe.Module) and name in target.members:
                pkg.members[name] = griffe.Alias(name, f"{target.path}.{name}", parent=pkg)
