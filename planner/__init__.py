"""VLM planner: calibrate a vision-language model, freeze a token-pruning plan, run it on unmodified transformers models."""
