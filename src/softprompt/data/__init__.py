"""Floor 2: from files to rows, from rows to tokens, from tokens to batches."""

from .encode import PAD_TO as PAD_TO
from .encode import SECOND as SECOND
from .encode import WithStates as WithStates
from .encode import collator as collator
from .encode import encode_classification as encode_classification
from .encode import encode_completion as encode_completion
from .encode import encode_seq2seq as encode_seq2seq
from .encode import encode_tokens as encode_tokens
from .read import Rows as Rows
from .read import parse_jsonl as parse_jsonl
from .read import read_rows as read_rows
from .split import limited as limited
from .split import sample_shots as sample_shots
from .split import stratified as stratified
from .stream import open_text as open_text
from .stream import stream_jsonl as stream_jsonl
from .stream import stream_rows as stream_rows
from .stream import stream_texts as stream_texts
from .task import Task as Task
from .task import load_rows as load_rows
from .task import load_task as load_task
from .verbalizer import Verbalizer as Verbalizer
from .words import check_words as check_words
