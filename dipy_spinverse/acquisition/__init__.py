"""What was measured: directions, b, and the gradient waveforms of each measurement."""

from dipy_spinverse.acquisition.free_waveforms import WaveformAcquisition
from dipy_spinverse.acquisition.pulsed import Acquisition

__all__ = [
    "Acquisition",
    "WaveformAcquisition",
]
