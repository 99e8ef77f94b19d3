"""What the papers say, read on the pretrained reference model, claim by claim."""
