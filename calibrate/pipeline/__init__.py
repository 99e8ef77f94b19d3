"""The whole calibration: what is asked, what is decided on one loaded model, and the steps in between."""
