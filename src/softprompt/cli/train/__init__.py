"""``softprompt train``: its options, a search of settings, its progress and its log."""

from .command import train as train
