"""The passes of the stack: one object for each kind, and the two short ways, a prefix that is shared and layers that are left out."""
