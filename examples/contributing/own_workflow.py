"""A workflow of one's own: NODDI from NIfTI files, also as a command line."""

import sys
import tempfile

import numpy as np
from dipy.data import default_sphere
from dipy.io.image import load_nifti, save_nifti
from dipy.workflows.flow_runner import run_flow
from dipy.workflows.workflow import Workflow

from dipy_spinverse import Acquisition, NODDIModel


class NODDIFlow(Workflow):
    def run(self, input_files, bvalues_files, bvectors_files, out_dir="", out_ndi="ndi.nii.gz"):
        """Fit NODDI.

        Parameters
        ----------
        input_files : string or Path
            Diffusion-weighted volumes.
        bvalues_files : string or Path
            b-values, s/mm^2.
        bvectors_files : string or Path
            b-vectors.
        out_dir : string or Path, optional
            Output directory.
        out_ndi : string, optional
            Name of the map of neurite density.
        """
        io = self.get_io_iterator()
        for dwi, bvals, bvecs, ndi in io:
            data, affine = load_nifti(str(dwi))
            acquisition = Acquisition.from_files(bvals, bvecs, big_delta=0.03, small_delta=0.01)
            save_nifti(ndi, NODDIModel(acquisition).fit(data, n_draws=0).ndi, affine)


if len(sys.argv) > 1:
    run_flow(NODDIFlow())
else:
    with tempfile.TemporaryDirectory() as folder:
        dwi, bvals, bvecs = (f"{folder}/dwi{end}" for end in (".nii.gz", ".bval", ".bvec"))
        np.savetxt(bvals, np.repeat([0.0, 1000.0, 2500.0], 20))
        np.savetxt(bvecs, default_sphere.vertices[::6][:60])
        acquisition = Acquisition.from_files(bvals, bvecs, big_delta=0.03, small_delta=0.01)
        truth = {"ndi": 0.6, "odi": 0.2, "fwf": 0.1, "axis": [0, 0, 1]}
        save_nifti(dwi, np.tile(NODDIModel(acquisition).signals(truth), (2, 2, 1, 1)), np.eye(4))
        NODDIFlow().run(dwi, bvals, bvecs, out_dir=folder)
        assert np.allclose(load_nifti(f"{folder}/ndi.nii.gz")[0], 0.6, atol=0.01)
