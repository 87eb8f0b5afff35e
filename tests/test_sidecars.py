"""Sidecars of structural images as dcm2niix writes them, made by hand."""

from __future__ import annotations

import pytest

from dipy_spinverse import TissueFractionModel
from dipy_spinverse.tissue_fractions import (
    MPRAGE,
    SpoiledGradientEcho,
    TurboSpinEcho,
    tissues_at,
)
from dipy_spinverse.tissue_fractions.sequence_files import field_of_sidecar, sequence_from
from dipy_spinverse.workflows.fit_tissue_fractions import TissueFractionsFlow

SIEMENS = {"Manufacturer": "Siemens", "MagneticFieldStrength": 3}
PHILIPS = {"Manufacturer": "Philips", "MagneticFieldStrength": 3}
GE = {"Manufacturer": "GE", "MagneticFieldStrength": 1.5}
MPRAGE_OF_SIEMENS = {
    **SIEMENS, "ScanningSequence": "GR_IR", "SequenceVariant": "SK_SP_MP", "ScanOptions": "IR_PFP",
    "SequenceName": "_tfl3d1_16ns", "EchoTime": 0.00298, "RepetitionTime": 2.3,
    "InversionTime": 0.9, "FlipAngle": 9,
}  # fmt: skip
SPACE = {
    **SIEMENS, "ScanningSequence": "SE", "SequenceVariant": "SK_SP_OSP",
    "SequenceName": "_spc_314ns", "EchoTime": 0.565, "RepetitionTime": 3.2, "FlipAngle": 120,
    "EchoTrainLength": 282,
}  # fmt: skip
TSE = {
    **SIEMENS, "ScanningSequence": "SE", "SequenceName": "_tse2d1_15", "EchoTime": 0.093,
    "RepetitionTime": 6.0, "FlipAngle": 150, "EchoTrainLength": 15,
}  # fmt: skip
FLAIR = {**TSE, "ScanningSequence": "SE_IR", "InversionTime": 2.5, "RepetitionTime": 9.0}
TFE = {
    **PHILIPS, "ScanningSequence": "GR", "SequenceVariant": "MP", "PulseSequenceName": "T1TFE",
    "EchoTime": 0.0037, "RepetitionTime": 0.0081, "FlipAngle": 8, "EchoTrainLength": 240,
}  # fmt: skip
BRAVO = {
    **GE, "ScanningSequence": "GR", "SequenceVariant": "SS_SP_SK", "PulseSequenceName": "BRAVO",
    "EchoTime": 0.0032, "RepetitionTime": 0.0082, "InversionTime": 0.45, "FlipAngle": 12,
}  # fmt: skip
FSE = {
    **GE, "ScanningSequence": "SE", "EchoTime": 0.102, "RepetitionTime": 5.2, "FlipAngle": 90,
    "EchoTrainLength": 16,
}  # fmt: skip
FLASH = {
    **SIEMENS, "ScanningSequence": "GR", "SequenceVariant": "SP_OSP", "SequenceName": "_fl3d1",
    "EchoTime": 0.0025, "RepetitionTime": 0.02, "FlipAngle": 20,
}  # fmt: skip
SPIN_ECHO = {
    **PHILIPS,
    "ScanningSequence": "SE",
    "EchoTime": 0.015,
    "RepetitionTime": 0.6,
    "FlipAngle": 90,
}


@pytest.mark.filterwarnings("ignore:The sidecar does not state")
@pytest.mark.parametrize(
    ("sidecar", "kind"),
    [
        (MPRAGE_OF_SIEMENS, MPRAGE), ({**TFE, "InversionTime": 0.95}, MPRAGE), (BRAVO, MPRAGE),
        (SPACE, TurboSpinEcho), (TSE, TurboSpinEcho), (FLAIR, TurboSpinEcho), (FSE, TurboSpinEcho),
        (SPIN_ECHO, TurboSpinEcho), (FLASH, SpoiledGradientEcho),
    ],
)  # fmt: skip
def test_structural_images_are_read(sidecar, kind):
    sequence = sequence_from(sidecar)
    assert type(sequence) is kind
    te = sequence.effective_te if kind is TurboSpinEcho else sequence.te
    assert te == sidecar["EchoTime"]
    if kind is TurboSpinEcho:  # rounding to a whole echo changes nothing
        assert sequence.echo * sequence.echo_spacing == pytest.approx(te, rel=1e-9)
    if kind is MPRAGE:
        assert sequence.ti == sidecar["InversionTime"]


@pytest.mark.parametrize("sidecar", [MPRAGE_OF_SIEMENS, TSE, FLAIR, BRAVO, SPACE, FSE])
def test_estimated_parameters_are_reported_with_their_effect(sidecar):
    with pytest.warns(UserWarning, match=r"does not state .* estimated.*changes about \d"):
        sequence_from(sidecar)


def test_known_parameters_are_not_estimated(recwarn):
    complete = {**MPRAGE_OF_SIEMENS, "RepetitionTimeExcitation": 0.0071, "NumberShots": 176}
    sequence = sequence_from(complete)
    assert (sequence.echo_spacing, sequence.n_pulses) == (0.0071, 176)
    assert sequence_from(TSE, echo_spacing=0.0116).echo_spacing == 0.0116
    assert not recwarn.list


def test_the_repetition_time_of_philips_and_ge_is_that_of_excitations():
    with pytest.warns(UserWarning, match="tr ="):
        sequence = sequence_from(BRAVO)
    assert sequence.echo_spacing == 0.0082 and sequence.tr > 2 * sequence.ti


@pytest.mark.parametrize(
    ("sidecar", "message"),
    [
        (TFE, "InversionTime"),
        ({**MPRAGE_OF_SIEMENS, "InversionTime": None}, "InversionTime"),
        ({**SIEMENS, "ScanningSequence": "EP", "EchoTime": 0.03, "RepetitionTime": 2.0}, "EP "),
        ({**SIEMENS, "ScanningSequence": "EP_SE", "EchoTime": 0.08}, "EP "),
        ({**GE, "ScanningSequence": ["EP", "GR"], "EchoTime": 0.03}, "EP "),
        ({**FLASH, "SequenceName": "_ep2d_bold"}, "EP2D"),
        ({**FLASH, "PulseSequenceName": "FIESTA"}, "FIESTA"),
        ({**FLASH, "RepetitionTime": 20}, "RepetitionTime .*milliseconds"),
        ({**FLASH, "EchoTime": 2.5}, "EchoTime .*milliseconds"),
        ({**MPRAGE_OF_SIEMENS, "InversionTime": 900}, "InversionTime .*milliseconds"),
        ({**FLASH, "FlipAngle": "low"}, "FlipAngle .* number"),
        ({**FLASH, "RepetitionTime": None}, r"needs tr \(RepetitionTime of a sidecar\); add it"),
    ],
)
def test_what_no_equation_describes_is_refused(sidecar, message):
    sidecar = {name: value for name, value in sidecar.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        sequence_from(sidecar)


def test_the_field_strength_is_read():
    assert field_of_sidecar(GE) == 1.5 and field_of_sidecar({}) is None
    assert field_of_sidecar({"MagneticFieldStrength": 2.89362}) == 3.0  # as Siemens writes it
    with pytest.raises(ValueError, match="MagneticFieldStrength is 0.55"):
        field_of_sidecar({"MagneticFieldStrength": 0.55})


def test_options_of_the_command_are_those_of_the_model():
    sequences = [SpoiledGradientEcho(0.02, 0.004, angle) for angle in (3, 20)]
    model = TissueFractionsFlow().make_model(
        sequences, unknown=["b1"], b1_error=0.07, constants_error=0.03, smoothness=0.6,
        series=[1, 0], field=7.0,
    )  # fmt: skip
    direct = TissueFractionModel(
        sequences, tissues_at(7.0), unknown=["b1"], b1_error=0.07, constants_error=0.03,
        smoothness=0.6, series=[1, 0],
    )  # fmt: skip
    assert repr(model.settings()) == repr(direct.settings())
    assert model.settings() != TissueFractionModel(sequences).settings()
