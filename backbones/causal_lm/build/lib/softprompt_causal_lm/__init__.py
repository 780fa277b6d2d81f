"""The files of a small causal language model, in the folder ``model``; `softprompt.embedded_backbone("causal-lm")` checks and finds them."""
