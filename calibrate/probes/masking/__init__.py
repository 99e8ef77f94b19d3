"""Masking curves: where the text needs the image. `probe` says which; `replay` executes, `depths` bisects, `reading`
reads what was measured.
"""

from calibrate.probes.masking.curves import CURVES
from calibrate.probes.masking.probe import MaskingProbe
from calibrate.probes.masking.reading import contradictions

__all__ = ["CURVES", "MaskingProbe", "contradictions"]
