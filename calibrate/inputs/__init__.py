"""What is measured on: samples and their answers, the model and its processor, encoded batches."""
