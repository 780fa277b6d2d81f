"""The files of a small masked language model, in the folder ``model``; `softprompt.embedded_backbone("masked-lm")` checks and finds them."""
