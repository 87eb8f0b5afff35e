"""Figures of the first pages, from the files that `make demo` writes, and of tutorials.

python -m benchmarks.doc_figures [demo_output]
"""

from __future__ import annotations

import argparse
import io
import runpy
import shutil
from pathlib import Path

import matplotlib
import numpy as np
from dipy.io.image import load_nifti
from matplotlib import pyplot
from PIL import Image

from dipy_spinverse import load_fit
from dipy_spinverse.report.page import save_page

matplotlib.use("agg")
EXAMPLES = Path(__file__).parents[1] / "examples"
FIGURES = Path(__file__).parents[1] / "doc" / "figures"
WIDTH = 860


def picture(figure):
    """A figure as an image."""
    stored = io.BytesIO()
    figure.savefig(stored, dpi=90)
    return Image.open(stored).convert("RGB")


def save(image, name):
    """Write an image, small."""
    height = round(image.height * WIDTH / image.width)
    small = image.resize((WIDTH, height), Image.Resampling.LANCZOS)
    small.save(FIGURES / name, optimize=True)


def stacked(images):
    """Images one above the other, as wide as the first."""
    first = images[0]
    parts = [image.resize((first.width, round(image.height * first.width / image.width)))
             for image in images]  # fmt: skip
    return Image.fromarray(np.concatenate([np.asarray(part) for part in parts]))


def screenshot(path):
    """Maps of a page as a browser shows them."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as browsers:
        browser = browsers.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"],
        )
        tab = browser.new_page(viewport={"width": 1240, "height": 1330})
        tab.set_default_timeout(300_000)
        tab.goto(path.resolve().as_uri())
        tab.wait_for_selector("#walls canvas")
        tab.evaluate("document.querySelector('#verdict').scrollIntoView()")
        tab.wait_for_timeout(1500)
        shot = Image.open(io.BytesIO(tab.screenshot())).convert("RGB")
        browser.close()
    return shot


def tutorial(name):
    """Figures of a tutorial, one above the other."""
    shown = []

    def show():
        shown.extend(picture(pyplot.figure(number)) for number in pyplot.get_fignums())
        pyplot.close("all")

    pyplot.close("all")
    pyplot.show = show
    runpy.run_path(str(EXAMPLES / f"{name}.py"))
    return stacked(shown)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default="demo_output")
    folder = parser.parse_args().folder
    fit = load_fit(folder / "fit" / "fit.npz")
    data, affine = load_nifti(folder / "dwi.nii.gz")
    Image.open(folder / "demo.png").quantize(256).save(FIGURES / "start.png", optimize=True)
    page = folder / "report.html"
    save_page(fit, page, data, affine=affine)
    save(screenshot(page), "report.png")
    save(tutorial("plot_tissue_fractions"), "tissue_fractions.png")


if __name__ == "__main__":
    main()
