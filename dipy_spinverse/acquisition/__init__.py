"""Measurement protocols: b-values, directions, timings and gradient waveforms.

========================  ======================================================================
`Acquisition`             two rectangular gradient pulses, defined by b, direction and timings
                          (the usual case; also stimulated echoes and powder averages)
`WaveformAcquisition`     free gradient waveforms, sampled or made by `encodings` (ramps, double
                          diffusion, oscillating gradients, b-tensor encoding)
`TensorAcquisition`       b-tensors without waveforms, for models of Gaussian diffusion
`BaseAcquisition`         what all of them have: b, b-tensors, echo times, b0 measurements
========================  ======================================================================

The only place where units change: seconds and s/mm^2 in DIPY and files, ms and ms/um^2 inside.
"""

from dipy_spinverse.acquisition.b_tensors import TensorAcquisition
from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.conversion import (
    acquisition_from_arrays,
    as_acquisition,
    require_pulsed,
    require_single_magnitudes,
)
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.pulsed import Acquisition

__all__ = [
    "Acquisition",
    "BaseAcquisition",
    "TensorAcquisition",
    "WaveformAcquisition",
    "acquisition_from_arrays",
    "as_acquisition",
    "require_pulsed",
    "require_single_magnitudes",
]
