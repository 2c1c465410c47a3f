"""The per-pixel forest: draws, faults, and that it serves wherever a network does."""
import numpy as np
import pytest
import torch

from isa_nb.chips import Chip
from isa_nb.core import NODATA, UNCERTAIN, DataError, RequestError
from isa_nb.forest import PixelForest, best_threshold, pixels
from isa_nb.models import Spec


def area(share=0.1, n=20, side=32, bands=4, seed=0, apart=3.0):
    "Chips in which impervious pixels are brighter by so many deviations, in every band."
    gen = np.random.default_rng(seed)
    label = (gen.random((n, side, side)) < share).astype(np.uint8)
    return [Chip((1000 + 100 * gen.normal(size=(bands, side, side)) + 100.0 * apart * m).astype(np.float32), m, np.ones(m.shape, np.float32)) for m in label]


def test_the_draw_is_uniform_over_all_pixels_of_a_class():
    "Chips of very different content: every pixel has the same chance, whichever chip it is in."
    label = [np.zeros((20, 20), np.uint8), np.r_[np.zeros((2, 20), np.uint8), np.full((18, 20), UNCERTAIN, np.uint8)]]
    chips = [Chip(np.full((1, 20, 20), i, np.uint16), m, np.ones(m.shape)) for i, m in enumerate(label)]
    from_second = np.mean([pixels(chips, 40, seed)[0].mean() for seed in range(200)])
    assert abs(from_second - 40 / 440) < 4 * np.sqrt(40 / 440 / 20 / 200)


@pytest.mark.parametrize("n", [100, 1000, 10**6])
def test_weights_restore_shares_and_confidence(n):
    chips = [c._replace(confidence=np.where(c.label == 1, 0.5, 1.0).astype(np.float32)) for c in area()]
    label = np.stack([c.label for c in chips])
    one, zero = (label == 1).sum(), (label == 0).sum()
    for confident, due in ((True, 0.5 * one / (0.5 * one + zero)), (False, one / (one + zero))):
        bands, code, weight = pixels(chips, n, confidence=confident)
        assert bands.shape == (len(code), 4) and len(code) <= n and abs(weight.mean() - 1) < 1e-9
        assert abs(np.average(code, weights=weight) - due) < 1e-6


def test_pixels_that_teach_nothing_are_left_out():
    chip = area(n=1)[0]
    chip.label[:4], chip.label[4:6], chip.confidence[6:8], chip.image[2, 8:10] = UNCERTAIN, NODATA, 0, np.nan
    bands, _, _ = pixels([chip], 10**6)
    assert len(bands) == 22 * 32 and np.isfinite(bands).all()
    assert len(pixels([chip], 10**6, confidence=False)[0]) == 24 * 32
    assert len(pixels([chip], 10**6, confidence=False, ignore=(1, UNCERTAIN, NODATA))[0]) == (chip.label[np.r_[6:8, 10:32]] == 0).sum()


def test_same_seed_same_forest_whatever_the_number_of_cores():
    chips, x = area(apart=1.0), torch.randn(2, 4, 16, 16) * 200 + 1100
    a, b, other = (PixelForest.fit(chips, 2000, seed=s, n_jobs=j)(x) for s, j in ((0, 1), (0, 2), (1, 1)))
    assert torch.allclose(a, b, atol=1e-6) and not torch.allclose(a, other, atol=1e-2)


def test_the_threshold_is_that_of_the_best_f1():
    "Against every threshold tried by hand, with weights."
    gen = np.random.default_rng(3)
    p = gen.random(500).round(2)
    truth, weight = gen.random(500) < p ** 2, gen.random(500)

    def f1(at):
        said = p >= at
        return 2 * weight[said & truth].sum() / (weight[said].sum() + weight[truth].sum())
    assert f1(best_threshold(truth, p, weight)) == pytest.approx(max(f1(t) for t in np.unique(p)))


def test_a_rare_class_is_found_and_probabilities_stay_honest_when_asked():
    chips, new = area(share=0.02, n=60, apart=2), area(share=0.02, n=15, apart=2, seed=9)
    x, truth = np.stack([c.image for c in new]), np.stack([c.label for c in new])
    best, honest = (PixelForest.fit(chips, 4000, decide=d)(x) for d in ("f1", "likelier"))
    score = {k: 2 * ((s := v.argmax(1)) * truth).sum() / (s.sum() + truth.sum()) for k, v in {"f1": best, "likelier": honest}.items()}
    assert score["f1"] > 0.5 and score["f1"] >= score["likelier"] - 0.02
    assert abs(np.exp(honest[:, 1]).mean() - 0.02) < 0.005


@pytest.mark.parametrize(("code", "says"), [(0, 0), (1, 1)])
def test_one_class_only_gives_a_defined_answer(code, says):
    chips = [c._replace(label=np.full_like(c.label, code)) for c in area(n=2)]
    out = PixelForest.fit(chips, 500)(np.stack([c.image for c in chips]))
    assert np.isfinite(out).all() and (out.argmax(1) == says).all() and out.shape == (2, 2, 32, 32)


@pytest.mark.filterwarnings("error")
def test_few_trees_are_no_noise():
    "Pixels that every tree has seen have no out-of-bag vote, and do not pull the threshold down."
    few, many = (PixelForest.fit(area(apart=5), 2000, n_estimators=n) for n in (4, 60))
    assert abs(few.threshold - many.threshold) < 0.2


def test_eleven_classes():
    gen = np.random.default_rng(0)
    label = gen.integers(0, 11, (4, 32, 32)).astype(np.uint8)
    label[label == 7] = 6
    chips = [Chip((m + 0.1 * gen.normal(size=(2, 32, 32))).astype(np.float32), m, np.ones(m.shape)) for m in label]
    out = PixelForest.fit(chips, 4000, n_classes=11, ignore=(NODATA,))(np.stack([c.image for c in chips]))
    assert out.shape == (4, 11, 32, 32) and (out.argmax(1) == label).mean() > 0.99


def test_holes_are_answered_with_the_shares():
    chips = area()
    x = np.stack([c.image for c in chips[:2]])
    x[0, 1, 3, 3], x[1] = np.inf, np.nan
    forest = PixelForest.fit(chips, 1000, decide="likelier")
    out = np.exp(forest(x))
    assert np.allclose(out[0, :, 3, 3], forest.shares, atol=1e-6) and np.allclose(out[1].std((1, 2)), 0)


def test_a_map_says_that_a_forest_made_it():
    "Given the description of the network beside it, bands and origin are taken over, and nothing else."
    from isa_nb.core import raster, square_geobox
    from isa_nb.mapping import map_array
    names = ["blue", "green", "red", "nir"]
    spec = Spec(architecture="ResNeStASPP", arguments={"zoom": 2}, bands=names, mean=[1] * 4, std=[1] * 4, zone="W2", simulated=True, training={"epochs": 5})
    chips = area(n=4)
    forest = PixelForest.fit(chips, 1000, spec=spec)
    assert (forest.spec.architecture, forest.spec.training) == ("PixelForest", {"pixels": len(pixels(chips, 1000)[1]), "decide": "f1"})
    image = raster(chips[0].image, square_geobox(81.3, 43.9, 512, 16), "image", 0, long_name=names)
    image.values[:, :4, :5] = 0
    made = map_array(forest, image, tile=16, overlap=4)
    assert (made.attrs["architecture"], made.attrs["trained_in"], made.attrs["simulated"]) == ("PixelForest", "W2", "yes")
    kept = made.label.values != NODATA
    assert (~kept).sum() == 20 and (made.label.values == forest(chips[0].image[None])[0].argmax(0))[kept].all()
    with pytest.raises(DataError, match="the model wants 4 bands"):
        map_array(forest, image[::-1].assign_attrs(long_name=names[::-1]), tile=16, overlap=4)


def test_faults_are_one_line():
    chips = area(n=2)
    spec = Spec(architecture="forest", bands=["red"], mean=[0], std=[1])
    for what, said, error in [(lambda: PixelForest.fit(chips, decide="loud"), "unknown way to decide 'loud'", RequestError),
                              (lambda: PixelForest.fit(chips, 100, spec=spec), "the description has 1 bands and 2 classes, the chips 4 and 2", RequestError),
                              (lambda: PixelForest.fit(chips, 100)(np.zeros((1, 3, 8, 8))), "imagery of 3 bands where the forest learnt from 4", DataError),
                              (lambda: PixelForest.fit([c._replace(label=np.full_like(c.label, 2)) for c in chips]), "none of 2 chips has a pixel", DataError)]:
        with pytest.raises(error, match=said):
            what()
