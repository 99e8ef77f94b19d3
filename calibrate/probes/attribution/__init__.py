"""Which attention heads carry the image into the answer (head attribution), by replaying the text rows only.

mean = mean_image(model, other_inputs)
found = attribute(model, inputs, answer_token, mean)
found.coefficients, found.fit.r2, found.curves["attribution"].faithful_heads
"""

from calibrate.probes.attribution.attribute import Attribution, attribute
from calibrate.probes.attribution.mean import MeanImage, mean_image

__all__ = ["Attribution", "MeanImage", "attribute", "mean_image"]
