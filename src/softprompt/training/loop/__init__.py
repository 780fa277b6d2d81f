"""The training itself: transformers' trainer, what it needs of batches, critics and heads, and its form for mixed batches."""
