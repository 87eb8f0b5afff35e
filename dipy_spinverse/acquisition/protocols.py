"""Pulse timings of public scans, in seconds, by name."""

from __future__ import annotations

PROTOCOLS = {
    # https://doi.org/10.1016/j.neuroimage.2013.05.057, https://doi.org/10.7554/eLife.53470
    "hcp-3t": {"big_delta": 0.0431, "small_delta": 0.0106, "te": 0.0895},
    # https://doi.org/10.1016/j.neuroimage.2015.08.075
    "hcp-mgh": {"big_delta": 0.0218, "small_delta": 0.0129, "te": 0.057},
}
"""Arguments of :meth:`dipy_spinverse.Acquisition.from_files`, by protocol.

"hcp-3t" is the Human Connectome Project of young adults at 3 T (WU-Minn consortium), "hcp-mgh"
that of the MGH-USC consortium with 300 mT/m.

Examples
--------
>>> from dipy_spinverse import Acquisition
>>> from dipy_spinverse.acquisition.protocols import PROTOCOLS
>>> Acquisition.from_files("bvals", "bvecs", **PROTOCOLS["hcp-3t"])  # doctest: +SKIP
"""
