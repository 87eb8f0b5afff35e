"""What was measured: directions, b, and the gradient waveforms of each measurement."""

from dipy_spinverse.acquisition.b_tensors import TensorAcquisition
from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.kinds import (
    measurements_from_arrays,
    measurements_of,
    pulsed_only,
)
from dipy_spinverse.acquisition.measurements import Measurements
from dipy_spinverse.acquisition.pulsed import Acquisition

__all__ = [
    "Acquisition",
    "Measurements",
    "TensorAcquisition",
    "WaveformAcquisition",
    "measurements_from_arrays",
    "measurements_of",
    "pulsed_only",
]
