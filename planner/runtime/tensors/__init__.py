"""Tensor operations without a model: parts of a prompt, ragged rows, masks, attention weights."""
