"""Makes the spectral auto-encoder of cell shapes: one network for all families of axons.

    python -m benchmarks.make_shape_autoencoder
    python -m benchmarks.make_shape_autoencoder --families bent --out bent.npz

Synthetic axons of the training ranges are mapped to the template; encoded are the 300 spectral
coefficients of their surface, at equal volume. Latent vectors are regularised towards a normal
distribution and are noisy while the network is fitted, so that neighbours are alike. Errors are
those of axons of the test ranges, which the network never sees.

Duration: 1 CPU-min. Writes dipy_spinverse/cell_shapes/shape_spaces/autoencoder.npz, or OUT.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from benchmarks.command import command
from dipy_spinverse.cell_shapes.shape_spaces.latent import N_MODES, SIZE, straight_template
from dipy_spinverse.cell_shapes.synthetic_axons import FAMILIES, draw_axons
from dipy_spinverse.cell_shapes.templates import cylinder_mesh

CHECKPOINT = (
    Path(__file__).parent.parent / "dipy_spinverse/cell_shapes/shape_spaces/autoencoder.npz"
)
_LATENT = 16
_WIDTHS = (256, 128)
_RATE, _BATCH, _STEPS = 2e-3, 256, 3500
_UM, _NOISE = 0.02, 0.05  # error that is allowed, um; standard deviation of noise on latents
_N_STARTS = 8


def coefficients(axons) -> np.ndarray:
    """Spectral coefficients (n, 3K) of axons of equal volume, um."""
    template, (_, modes) = straight_template(*SIZE, N_MODES)
    places = cylinder_mesh(*SIZE).points[template.surface]
    triangles = np.searchsorted(template.surface, template.triangles)
    straight = template.points[template.surface]
    _, areas = template.laplacian
    project = modes.T * (areas / areas.sum())
    volume = _volume(straight[triangles])
    found = []
    for axon in axons:
        points = axon.positions(places)
        points *= np.cbrt(volume / _volume(points[triangles]))
        found.append((project @ (points - straight)).ravel())
    return np.array(found)


def _volume(corners):
    a, b, c = np.moveaxis(corners, 1, 0)
    return (np.cross(a, b) * c).sum() / 6


def _network(sizes):
    layers = []
    for before, after in zip(sizes, sizes[1:], strict=False):
        layers += [torch.nn.Linear(before, after), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers[:-1])


def fit(families, n: int, steps: int) -> dict[str, np.ndarray]:
    """Arrays of the networks, and of the latent vectors of what they were fitted to."""
    rng = np.random.default_rng(1)
    seen = coefficients([axon for name in families for axon in draw_axons(name, n, rng)])
    others = np.random.default_rng(2)
    unseen = {name: coefficients(draw_axons(name, 200, others, test=True)) for name in families}
    print(f"simulated: {time.process_time():.0f} CPU-s", flush=True)
    centre, size = seen.mean(axis=0), float(seen.std())
    data = torch.tensor((seen - centre) / size, dtype=torch.float32)
    torch.manual_seed(0)
    encoder = _network([data.shape[1], *_WIDTHS, _LATENT])
    decoder = _network([_LATENT, *_WIDTHS[::-1], data.shape[1]])
    parameters = [*encoder.parameters(), *decoder.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=_RATE, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 1e-6)
    for step in range(steps):
        rows = data[torch.from_numpy(rng.integers(len(data), size=_BATCH))]
        latent = encoder(rows)
        out = decoder(latent + _NOISE * torch.randn_like(latent))
        # mean squares of coefficients add up to those of distances on the surface
        squared = size**2 * (out - rows).square().sum(dim=1).mean()
        loss = squared / _UM**2 + latent.square().sum(dim=1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % (steps // 8) == 0 or step == steps - 1:
            left = {name: _error(encoder, decoder, centre, size, c) for name, c in unseen.items()}
            print(
                f"{step}: {squared.item() ** 0.5:.3f} um; test",
                ", ".join(f"{name} {e:.3f}" for name, e in left.items()),
                f"({time.process_time():.0f} CPU-s)",
                flush=True,
            )
    with torch.no_grad():
        latent = encoder(data).numpy().astype(float)
    clusters, _ = kmeans2(latent, _N_STARTS, minit="++", seed=0)
    arrays = {"mean": latent.mean(axis=0), "covariance": np.cov(latent.T), "starts": clusters}
    return arrays | _arrays(decoder, centre, size)


def _error(encoder, decoder, centre, size, shapes):
    """Root mean square distance on the surface, um."""
    with torch.no_grad():
        rows = torch.tensor((shapes - centre) / size, dtype=torch.float32)
        return size * float((decoder(encoder(rows)) - rows).square().sum(dim=1).mean()) ** 0.5


def _arrays(decoder, centre, size):
    """Weights (inputs, outputs) and biases of the decoder, to coefficients in um."""
    linear = [layer for layer in decoder if isinstance(layer, torch.nn.Linear)]
    weights = [layer.weight.detach().numpy().T for layer in linear]
    biases = [layer.bias.detach().numpy() for layer in linear]
    weights[-1], biases[-1] = weights[-1] * size, biases[-1] * size + centre
    arrays = {"layers": np.array(len(linear))}
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        arrays[f"weight_{k}"] = weight.astype(np.float32)
        arrays[f"bias_{k}"] = bias.astype(np.float32)
    return arrays


def main() -> None:
    """Command line."""
    parser = command(__doc__)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    parser.add_argument("--axons", type=int, default=1500, help="of each family")
    parser.add_argument("--steps", type=int, default=_STEPS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    np.savez_compressed(given.out, **fit(given.families, given.axons, given.steps))
    print(f"{given.out.name}: {given.out.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
