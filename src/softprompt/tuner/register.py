"""Make SOFTPROMPT a member of PEFT's closed enum of methods: the one place that reaches into PEFT."""

from __future__ import annotations

from peft.utils import PeftType

NAME = "softprompt"


def _add_peft_type(name: str) -> PeftType:
    """Add one member to `PeftType`. It must be a real member: transformers looks types up by value.

    `register_peft_method` then takes the name as it takes PEFT's own, and derives the parameter prefix ``softprompt_``.
    """
    if name in PeftType._value2member_map_:
        return PeftType(name)
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType)
    type.__setattr__(PeftType, name, member)  # EnumMeta.__setattr__ would refuse
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    return member


SOFTPROMPT = _add_peft_type(NAME.upper())
