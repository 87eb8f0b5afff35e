"""Imaging sequences, in seconds and degrees."""

from __future__ import annotations

import math
from dataclasses import dataclass

# s, except angles (degrees). Larger values have another unit: T2 and T1 of CSF are 2 and 4 s.
_LARGEST = {
    **dict.fromkeys(("te", "effective_te", "echo_spacing", "duration"), 2.0),
    **dict.fromkeys(("ti", "ti1", "ti2", "tr", "shot_interval"), 30.0),
    **dict.fromkeys(("flip_angle", "refocusing_angle", "excitation_angle"), 360.0),
}


def _positive(sequence, *names):
    for name in names:
        value, largest = getattr(sequence, name), _LARGEST.get(name, math.inf)
        never = name in ("tr", "shot_interval") and value == math.inf
        if value is True or not 0 < value <= (math.inf if never else largest):
            raise ValueError(
                f"{name} of {type(sequence).__name__} is {value}; give a value above 0 and at "
                f"most {largest:g}, in seconds, degrees or mm."
            )


def _lasts(preparation):
    match preparation:
        case (
            InversionPreparation(ti=time)
            | DoubleInversionPreparation(ti1=time)
            | T2Preparation(duration=time)
        ):
            return time
    return 0.0


@dataclass(frozen=True)
class InversionPreparation:
    """Inversion `ti` s before the first excitation, as in FLAIR.

    An adiabatic pulse is independent of the transmit field.
    """

    ti: float
    adiabatic: bool = False

    def __post_init__(self):
        _positive(self, "ti")


@dataclass(frozen=True)
class DoubleInversionPreparation:
    """Inversions `ti1` and `ti2` s before the first excitation.

    Adiabatic pulses are independent of the transmit field.
    """

    ti1: float
    ti2: float
    adiabatic: bool = False

    def __post_init__(self):
        _positive(self, "ti1", "ti2")
        if not self.ti1 > self.ti2:
            raise ValueError(
                f"ti1 is {self.ti1} s, ti2 is {self.ti2} s; both end at the excitation, give "
                "ti1 > ti2."
            )


@dataclass(frozen=True)
class T2Preparation:
    """Tip down by 90 degrees, refocus, tip up after `duration` s, spoil, before a readout.

    Adiabatic pulses are independent of the transmit field.
    """

    duration: float
    adiabatic: bool = False

    def __post_init__(self):
        _positive(self, "duration")


Preparation = InversionPreparation | DoubleInversionPreparation | T2Preparation


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """Spoiled gradient echoes (FLASH): in steady state, or in shots after a preparation.

    Attributes
    ----------
    tr : float
        Between excitations, s.
    te : float
        From excitation to echo, s.
    flip_angle : float
        Of excitations, degrees.
    preparation : Preparation or None
        At the start of each shot.
    n_pulses : int
        Excitations in a shot; 1 without a preparation for the steady state.
    centre : int
        Index of the excitation at the centre of k-space, from 0.
    shot_interval : float
        Between the beginnings of shots, s; infinite for complete relaxation.
    pulse_duration : float
        Of each rectangular pulse, s; only pulses of finite duration depend on off-resonance.
    name : str
        Of the image, in messages and reports.

    Examples
    --------
    >>> SpoiledGradientEcho(tr=0.0056, te=0.0025, flip_angle=5, n_pulses=64, centre=32,
    ...                     preparation=InversionPreparation(0.5)).preparation.ti
    0.5
    """

    tr: float
    te: float
    flip_angle: float
    preparation: Preparation | None = None
    n_pulses: int = 1
    centre: int = 0
    shot_interval: float = math.inf
    pulse_duration: float = 0.0
    name: str = ""

    def __post_init__(self):
        _positive(self, "tr", "te", "flip_angle", "n_pulses", "shot_interval")
        if not self.te < self.tr:
            raise ValueError(f"te is {self.te} s, tr is {self.tr} s; give te < tr.")
        if not 0 <= self.centre < self.n_pulses:
            raise ValueError(
                f"centre is {self.centre}; give one of the n_pulses = {self.n_pulses} "
                "excitations, from 0."
            )
        if self.shot_interval < self.duration:
            raise ValueError(
                f"shot_interval is {self.shot_interval} s, shorter than its preparation and its "
                f"n_pulses = {self.n_pulses} excitations; give the time between preparations."
            )

    @property
    def duration(self) -> float:
        """Of a shot without its final delay, s."""
        return _lasts(self.preparation) + self.n_pulses * self.tr


@dataclass(frozen=True)
class MPRAGE:
    """Inversion, a train of spoiled gradient echoes, recovery; in periodic steady state.

    Attributes
    ----------
    tr : float
        Between inversions, s.
    ti : float
        From the inversion to the excitation at the centre of k-space, s.
    te : float
        From excitation to echo, s.
    flip_angle : float
        Degrees.
    echo_spacing : float
        Between excitations, s.
    n_pulses : int
        Excitations after each inversion; the centre of k-space is at half of them.
    adiabatic : bool
        Whether the inversion is independent of the transmit field.
    pulse_duration : float
        See :class:`SpoiledGradientEcho`.
    name : str
    """

    tr: float
    ti: float
    te: float
    flip_angle: float
    echo_spacing: float
    n_pulses: int
    adiabatic: bool = True
    pulse_duration: float = 0.0
    name: str = ""

    def __post_init__(self):
        _positive(self, "tr", "ti", "te", "flip_angle", "echo_spacing", "n_pulses")
        if not self.ti > self.n_pulses // 2 * self.echo_spacing:
            raise ValueError(
                f"ti is {self.ti} s, shorter than the first half of n_pulses = {self.n_pulses} "
                f"excitations of echo_spacing = {self.echo_spacing} s; give the time to the "
                "centre of k-space, and the excitations between two inversions."
            )
        self.as_gradient_echo()

    def as_gradient_echo(self) -> SpoiledGradientEcho:
        """Equivalent shots of gradient echoes."""
        centre = self.n_pulses // 2
        return SpoiledGradientEcho(
            self.echo_spacing, self.te, self.flip_angle,
            InversionPreparation(self.ti - centre * self.echo_spacing, self.adiabatic),
            self.n_pulses, centre, self.tr, self.pulse_duration, self.name,
        )  # fmt: skip


@dataclass(frozen=True)
class TurboSpinEcho:
    """A train of spin and stimulated echoes (TSE, FSE, RARE; a spin echo if of one echo).

    Attributes
    ----------
    tr : float
        Between preparations or excitations, s; infinite for complete relaxation.
    echo_spacing : float
        Between echoes, s.
    echo_train_length : int
        Echoes after each excitation.
    effective_te : float
        Of the echo at the centre of k-space, s; rounded to a multiple of `echo_spacing`.
    refocusing_angle : float
        Of all refocusing pulses, degrees.
    excitation_angle : float
        Degrees.
    preparation : Preparation or None
        Such as the inversion of FLAIR.
    pulse_duration : float
        See :class:`SpoiledGradientEcho`.
    name : str

    Examples
    --------
    >>> TurboSpinEcho(tr=4.0, echo_spacing=0.01, echo_train_length=15, effective_te=0.08).echo
    8
    """

    tr: float
    echo_spacing: float
    echo_train_length: int
    effective_te: float
    refocusing_angle: float = 180.0
    excitation_angle: float = 90.0
    preparation: Preparation | None = None
    pulse_duration: float = 0.0
    name: str = ""

    def __post_init__(self):
        _positive(
            self, "tr", "echo_spacing", "echo_train_length", "effective_te", "refocusing_angle",
            "excitation_angle",
        )  # fmt: skip
        if not 1 <= self.echo <= self.echo_train_length:
            raise ValueError(
                f"effective_te is {self.effective_te} s; give the time of one of the "
                f"{self.echo_train_length} echoes, {self.echo_spacing} s apart."
            )
        if self.tr < self.duration:
            raise ValueError(
                f"tr is {self.tr} s, shorter than the preparation and the "
                f"{self.echo_train_length} echoes; give the time between excitations."
            )

    @property
    def duration(self) -> float:
        """Of the preparation and the echoes, s."""
        return _lasts(self.preparation) + self.echo_train_length * self.echo_spacing

    @property
    def echo(self) -> int:
        """Number of the echo at the centre of k-space, from 1."""
        return round(float(self.effective_te / self.echo_spacing))


@dataclass(frozen=True)
class PulseqFile:
    """A complete scan of a Pulseq file (.seq), simulated by :class:`MRzeroSimulator`.

    The contrast is that of the sample nearest to the centre of k-space. Flip angles are integrals
    of the pulses: adiabatic pulses are not supported. The scan starts from equilibrium.

    Attributes
    ----------
    path : str
    voxel_mm : float
        Voxel size, across which gradients spoil.
    echo : int
        Number of the pass through the centre of k-space, from 1, if a file has several images.
    name : str

    Examples
    --------
    >>> PulseqFile("t1_weighted.seq", voxel_mm=2.0).echo
    1
    """

    path: str
    voxel_mm: float
    echo: int = 1
    name: str = ""

    def __post_init__(self):
        _positive(self, "voxel_mm", "echo")
        if self.echo != int(self.echo):
            raise ValueError(f"echo of PulseqFile is {self.echo}; give a whole number from 1.")


Sequence = SpoiledGradientEcho | MPRAGE | TurboSpinEcho | PulseqFile
