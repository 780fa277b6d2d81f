"""Floor 4: backbones with a head, as a task needs them: built, loaded, encoded for, scored. No trainer."""

from .assemble import build_model as build_model
from .assemble import load as load
from .assemble import load_beside as load_beside
from .classifier import PooledClassifier as PooledClassifier
from .classifier import classifier_for as classifier_for
from .completing import Writing as Writing
from .embedded import EMBEDDED as EMBEDDED
from .embedded import embedded_backbone as embedded_backbone
from .hub import adapter_folder as adapter_folder
from .kinds import KINDS as KINDS
from .kinds import Kind as Kind
from .places import backbone_path as backbone_path
from .places import load_tokenizer as load_tokenizer
from .places import read_config as read_config
from .task_card import TASK_FILE as TASK_FILE
from .task_card import TaskCard as TaskCard
from .verbalized import VerbalizedClassifier as VerbalizedClassifier
