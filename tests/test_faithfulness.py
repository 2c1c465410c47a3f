"""faithfulness against opensr-test 1.3.3 and scikit-image themselves: numbers that they gave, kept here because they are no dependencies.

`oracle` made them, with opensr-test 1.3.3, satalign 0.1.17 and scikit-image 0.26.0; made again, where these are installed, by

    python tests/test_faithfulness.py
"""
import json

import numpy as np
import pytest
from odc.geo.geobox import GeoBox
from scipy.ndimage import gaussian_filter, shift

from isa_nb import faithfulness as f
from isa_nb.core import NODATA, DataError, IsaError, raster

# name: seed, bands, side of the coarse image, scale, options of opensr-test, the same for us
CASES = {"as it comes": (5, 4, 48, 4, {}, {}), "not harmonised": (5, 4, 48, 4, {"harm_apply_spatial": False, "harm_apply_spectral": False}, {"place": False, "radiometry": False}),
         "in place": (5, 4, 48, 4, {"harm_apply_spatial": False}, {"place": False}), "percent": (5, 4, 48, 4, {"correctness_norm": "percent"}, {}),
         "ten times": (6, 3, 24, 10, {"border_mask": 20}, {})}  # ours rounds a border of 16 up to whole coarse pixels; opensr-test cannot take 16 at ten times

GIVEN = {
    "as it comes": {"reflectance": 0.012067501433193684, "spectral": 3.495986223220825, "spatial": 0.24738633632659912, "synthesis": 0.014650983735918999, "ha": 0.4024772346019745, "om": 0.19831205904483795, "im": 0.39921072125434875},
    "not harmonised": {"reflectance": 0.012067501433193684, "spectral": 3.495986223220825, "spatial": 0.24738633632659912, "synthesis": 0.01638103276491165, "ha": 0.6108132004737854, "om": 0.2158776819705963, "im": 0.1733090877532959},
    "in place": {"reflectance": 0.012067501433193684, "spectral": 3.495986223220825, "spatial": 0.24738633632659912, "synthesis": 0.018523376435041428, "ha": 0.6642819046974182, "om": 0.15483224391937256, "im": 0.18088583648204803},
    "percent": {"reflectance": 0.012067501433193684, "spectral": 3.495986223220825, "spatial": 0.24738633632659912, "synthesis": 0.014650983735918999, "ha": 0.3579886853694916, "om": 0.182083398103714, "im": 0.45992791652679443},
    "ten times": {"reflectance": 0.008880741894245148, "spectral": 2.3800246715545654, "spatial": 0.08246210962533951, "synthesis": 0.03048517182469368, "ha": 0.07973816990852356, "om": 0.09616997092962265, "im": 0.8240918517112732},
}
SKIMAGE = {"ssim": 0.8580508828163147, "psnr": 32.906110629309275}


def images(seed: int, bands: int, n: int, scale: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Coarse, drawn and true image: the drawn one is moved, darker and noisy."
    gen = np.random.default_rng(seed)
    hr = np.stack([gaussian_filter(gen.normal(size=(n * scale, n * scale)), s) for s in (1.5, 2, 3, 5)][:bands])
    hr = (0.2 + 0.05 * hr / hr.std((1, 2), keepdims=True)).clip(0.01, 1).astype(np.float32)
    lr = hr.reshape(bands, n, scale, n, scale).mean((2, 4)).astype(np.float32)
    sr = (0.9 * shift(hr, (0, 0.4, 1.3), order=1, mode="nearest") + 0.01 * gen.normal(size=hr.shape) + 0.02).astype(np.float32)
    return lr, sr, hr


def oracle() -> dict:
    "What opensr-test and scikit-image say."
    import opensr_test
    import torch
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    out = {}
    for name, (*how, options, _) in CASES.items():
        lr, sr, hr = map(torch.from_numpy, images(*how))
        out[name] = {k.removesuffix("_metric"): float(v) for k, v in opensr_test.Metrics(**options).compute(lr=lr, sr=sr, hr=hr).items()}
    _, sr, hr = images(5, 4, 48, 4)
    same = {"data_range": 1.0}
    return out | {"skimage": {"ssim": float(structural_similarity(hr, sr, channel_axis=0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, **same)), "psnr": float(peak_signal_noise_ratio(hr, sr, **same))}}


@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_opensr_test(name):
    *how, _, options = CASES[name]
    lr, sr, hr = images(*how)
    near, right = f.consistency(lr, sr), f.correctness(lr, sr, hr, **options)
    shares = right.percent if name == "percent" else right.means
    ours = {"reflectance": near.reflectance.mean(), "spectral": near.spectral.mean(), "spatial": near.spatial, "synthesis": right.synthesis.mean(), **{k[:2]: v for k, v in shares.items()}}
    assert ours == pytest.approx(GIVEN[name], rel=2e-4, abs=1e-6)


def test_ssim_and_psnr_are_those_of_scikit_image():
    _, sr, hr = images(5, 4, 48, 4)
    assert f.ssim(sr, hr) == pytest.approx(SKIMAGE["ssim"], abs=1e-4)
    assert f.psnr(sr, hr) == pytest.approx(SKIMAGE["psnr"], abs=1e-4)


def test_scores_agree_with_the_measures_and_their_intervals_hold_them():
    lr, sr, hr = images(5, 4, 48, 4)
    table, right = f.scores(lr, sr, hr, n=200).set_index("score"), f.correctness(lr, sr, hr)
    assert table.estimate[list(f.OUTCOMES)].to_dict() == pytest.approx(right.means)
    assert table.estimate["psnr"] == pytest.approx(f.psnr(sr[:, 16:-16, 16:-16], hr[:, 16:-16, 16:-16]))
    assert table.estimate["ssim"] == pytest.approx(f.ssim(sr[:, 16:-16, 16:-16], hr[:, 16:-16, 16:-16]))
    assert ((table.lo <= table.estimate) & (table.estimate <= table.hi)).all()
    same = f.scores(lr, sr, hr, other=sr, n=50).set_index("score")
    assert same.estimate.abs().max() < 1e-12
    assert same.hi.abs().max() < 1e-12


def test_a_random_map_is_less_supported_than_the_truth():
    gen = np.random.default_rng(1)
    box = GeoBox.from_bbox((500000, 3400000, 500400, 3400400), "EPSG:32650", resolution=1)
    town = np.zeros((40, 40), bool)
    town[10:30, 10:30] = True
    true = np.repeat(np.repeat(town, 10, 0), 10, 1) & (gen.random((400, 400)) < 0.5)
    room = raster(town.astype(np.float32), box.zoom_out(10), "evidence", np.nan)
    said = {k: f.unsupported_share(f.unsupported(raster(v.astype(np.uint8), box, "isa", NODATA), room)) for k, v in {"true": true, "random": gen.random((400, 400)) < true.mean()}.items()}
    assert said["true"].estimate[0] == 0
    assert said["random"].lo[0] > 0.5
    isa = raster(np.full((400, 400), NODATA, np.uint8), box, "isa", NODATA)
    assert (f.unsupported(isa, room) == NODATA).all()
    with pytest.raises(DataError, match="no coarse pixel is known to both maps"):
        f.area_consistency(isa, room)


def test_grids_that_do_not_fit_are_named():
    box = GeoBox.from_bbox((500000, 3400000, 500040, 3400040), "EPSG:32650", resolution=1)
    isa = raster(np.ones((40, 40), np.uint8), box, "isa", NODATA)
    far = raster(np.ones((4, 4), np.float32), box.zoom_out(10).translate_pix(100, 0), "evidence", np.nan)
    off = raster(np.ones((4, 4), np.float32), box.zoom_out(10).translate_pix(0.04, 0), "evidence", np.nan)
    with pytest.raises(IsaError, match="do not overlap"):
        f.unsupported(isa, far)
    with pytest.raises(IsaError, match="do not line up"):
        f.area_consistency(isa, off)


if __name__ == "__main__":
    print(json.dumps(oracle(), indent=1))
