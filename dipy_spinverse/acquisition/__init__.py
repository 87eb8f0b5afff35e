"""What was measured: directions, b, and the gradient waveforms of each measurement."""

from dipy_spinverse.acquisition.b_tensors import TensorAcquisition
from dipy_spinverse.acquisition.base import BaseAcquisition
from dipy_spinverse.acquisition.conversion import (
    acquisition_from_arrays,
    as_acquisition,
    require_pulsed,
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
]
