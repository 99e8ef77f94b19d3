"""Inputs of a calibration: samples and answers, the model and its processor, encoded batches."""
