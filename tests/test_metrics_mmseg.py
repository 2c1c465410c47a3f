"""metrics against mmsegmentation 1.2.2 itself: numbers that its IoUMetric gave, kept here because it is no dependency.

Source: mmseg/evaluation/metrics/iou_metric.py of mmsegmentation 1.2.2 (with mmcv-lite 2.1.0, mmengine 0.10.7), `intersect_and_union` image by
image, counts brought to float64, then `total_area_to_metrics`, unrounded; means are its `np.nanmean`. Made again, where it is installed, by

    python tests/test_metrics_mmseg.py
"""
import numpy as np
import pytest

from isa_nb import metrics as m

MEANS = ("aAcc", "mIoU", "mAcc", "mDice", "mFscore", "mPrecision", "mRecall")
PER_CLASS = ("IoU", "Acc", "Dice", "Fscore", "Precision", "Recall")
nan = float("nan")

# name: seed, classes, class concerned, what happens to it, nan_to_num
CASES = {
    "two classes": (0, 2, 1, "", None), "nine classes": (1, 9, 0, "", None), "a third ignored": (2, 3, 0, "ignored", None),
    "rare class": (3, 2, 1, "rare", None), "absent from both": (4, 3, 2, "absent", None), "absent, of two": (5, 2, 1, "absent", None),
    "present, never predicted": (6, 3, 1, "missed", None), "predicted, never present": (7, 3, 1, "never", None),
    "both, no overlap": (8, 3, 1, "apart", None), "nine, two missed": (9, 9, 3, "missed", None),
    "stray label": (10, 3, 1, "stray label", None), "stray prediction": (11, 3, 1, "stray prediction", None),
    "all ignored": (12, 2, 1, "all ignored", None), "missed, NaN as 0": (6, 3, 1, "missed", 0), "absent, NaN as 0": (4, 3, 2, "absent", 0),
    "absent of two, NaN as -1": (5, 2, 1, "absent", -1),
}


def images(seed: int, classes: int, k: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    "Prediction and truth, each (3, 24, 31) uint8: three images."
    gen = np.random.default_rng(seed)
    truth, other = gen.integers(0, classes, (2, 3, 24, 31)).astype(np.uint8)
    if what == "rare":
        truth, other = (np.where(gen.random(truth.shape) < 0.97, 0, a).astype(np.uint8) for a in (truth, other))
    pred = np.where(gen.random(truth.shape) < 0.6, truth, other).astype(np.uint8)
    spot = gen.random(truth.shape) < (1 if what == "all ignored" else 0.33)
    if what in ("absent", "missed"):
        pred[pred == k] = 0
    if what in ("absent", "never"):
        truth[truth == k] = 0
    if what == "apart":
        pred[(pred == k) & (truth == k)] = 0
    if what in ("ignored", "all ignored"):
        truth[spot] = 255
    if what == "stray label":
        truth[spot & (pred == k)] = 7
    if what == "stray prediction":
        pred[spot] = 255
    return pred, truth


def oracle(name: str) -> dict:
    "What mmsegmentation says of a case."
    import torch
    from mmseg.evaluation.metrics.iou_metric import IoUMetric
    *how, nan_to_num = CASES[name]
    pairs = [IoUMetric.intersect_and_union(torch.from_numpy(p.astype(np.int64)), torch.from_numpy(t.astype(np.int64)), how[1], 255) for p, t in zip(*images(*how), strict=True)]
    got = IoUMetric.total_area_to_metrics(*(sum(a).double() for a in zip(*pairs, strict=True)), ["mIoU", "mDice", "mFscore"], nan_to_num)
    return {"means": [float(got["aAcc"]), *(float(np.nanmean(got[k[1:]])) for k in MEANS[1:])],
            "per_class": [[float(v) for v in got[k]] for k in PER_CLASS] if how[1] < 9 else None}


VECTORS = {
    'two classes': {'means': [0.796594982078853, 0.6618141681272602, 0.7966197595141096, 0.7964758537414228, 0.7964758537414229, 0.7964139282544705, 0.7966197595141096], 'per_class': [[0.6550151975683891, 0.6686131386861314], [0.7974098057354302, 0.7958297132927888], [0.7915518824609734, 0.8013998250218722], [0.7915518824609735, 0.8013998250218722], [0.7857793983591613, 0.8070484581497798], [0.7974098057354302, 0.7958297132927888]]},
    'nine classes': {'means': [0.6482974910394266, 0.4796954027753421, 0.6490403213887833, 0.6479021419904004, 0.6479021419904004, 0.648250911693943, 0.6490403213887833], 'per_class': None},
    'a third ignored': {'means': [0.7384615384615385, 0.5851446691645478, 0.7382320793102676, 0.7382032731573144, 0.7382032731573145, 0.7382139088691776, 0.7382320793102676], 'per_class': [[0.5810593900481541, 0.6024844720496895, 0.5718901453957996], [0.7402862985685071, 0.7504835589941973, 0.7239263803680982], [0.7350253807106599, 0.751937984496124, 0.7276464542651593], [0.7350253807106598, 0.7519379844961241, 0.7276464542651594], [0.7298387096774194, 0.7533980582524272, 0.731404958677686], [0.7402862985685071, 0.7504835589941973, 0.7239263803680982]]},
    'rare class': {'means': [0.9865591397849462, 0.6932188065099458, 0.7309592359259298, 0.7823005396969893, 0.7823005396969893, 0.8651549508692365, 0.7309592359259298], 'per_class': [[0.9864376130198915, 0.4], [0.9968021927820923, 0.46511627906976744], [0.9931725079654073, 0.5714285714285714], [0.9931725079654073, 0.5714285714285714], [0.9895691609977324, 0.7407407407407407], [0.9968021927820923, 0.46511627906976744]]},
    'absent from both': {'means': [0.8104838709677419, 0.6518435414049703, 0.7839628419856075, 0.7846550015452883, 0.7846550015452884, 0.7853681691964922, 0.7839628419856075], 'per_class': [[0.7532088681446908, 0.5504782146652497, nan], [0.8612408272181454, 0.7066848567530696, nan], [0.8592346089850249, 0.7100753941055518, nan], [0.859234608985025, 0.7100753941055518, nan], [0.8572377158034529, 0.7134986225895317, nan], [0.8612408272181454, 0.7066848567530696, nan]]},
    'absent, of two': {'means': [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0], 'per_class': [[1.0, nan], [1.0, nan], [1.0, nan], [1.0, nan], [1.0, nan], [1.0, nan]]},
    'present, never predicted': {'means': [0.5286738351254481, 0.32750972797412425, 0.5331492588838184, 0.435524605924755, 0.6532869088871326, 0.5875945254793499, 0.5331492588838184], 'per_class': [[0.39536340852130325, 0.0, 0.5871657754010695], [0.8751733703190014, 0.0, 0.7242744063324539], [0.5666816344858554, 0.0, 0.7398921832884097], [0.5666816344858554, nan, 0.7398921832884098], [0.41899070385126164, nan, 0.756198347107438], [0.8751733703190014, 0.0, 0.7242744063324539]]},
    'predicted, never present': {'means': [0.5421146953405018, 0.33291435135595, 0.5879004112403334, 0.440915863443384, 0.661373795165076, 0.5379834327580523, 0.5879004112403334], 'per_class': [[0.4102067183462532, 0.0, 0.5885363357215967], [0.43672627235213207, nan, 0.7390745501285347], [0.581768208886853, 0.0, 0.740979381443299], [0.581768208886853, nan, 0.740979381443299], [0.8710562414266118, 0.0, 0.7428940568475452], [0.43672627235213207, nan, 0.7390745501285347]]},
    'both, no overlap': {'means': [0.46729390681003585, 0.30144573004788655, 0.4722065488768665, 0.41017196822876095, 0.6152579523431412, 0.3726340216599013, 0.4722065488768665], 'per_class': [[0.3453573814295257, 0.0, 0.5589798087141339], [0.6921017402945113, 0.0, 0.7245179063360881], [0.5134061569016882, 0.0, 0.7171097477845945], [0.5134061569016881, nan, 0.7171097477845944], [0.4080505130228887, 0.0, 0.7098515519568152], [0.6921017402945113, 0.0, 0.7245179063360881]]},
    'nine, two missed': {'means': [0.5958781362007168, 0.41428285191415004, 0.5899264925478035, 0.5627805132022802, 0.6331280773525652, 0.621939253947112, 0.5899264925478035], 'per_class': None},
    'stray label': {'means': [0.7452452452452453, 0.544086170076091, 0.7381788840792679, 0.6982666098308411, 0.6982666098308411, 0.665270431656778, 0.7381788840792679], 'per_class': [[0.6187904967602592, 0.3939393939393939, 0.6195286195286195], [0.7849315068493151, 0.6488413547237076, 0.7807637906647807], [0.7645096731154103, 0.5652173913043478, 0.7650727650727651], [0.7645096731154103, 0.5652173913043478, 0.7650727650727651], [0.7451235370611183, 0.5006877579092159, 0.75], [0.7849315068493151, 0.6488413547237076, 0.7807637906647807]]},
    'stray prediction': {'means': [0.49507168458781364, 0.42285381470095734, 0.4950578020283935, 0.5943708742650964, 0.5943708742650964, 0.7435995997627552, 0.4950578020283935], 'per_class': [[0.4258426966292135, 0.4206257242178447, 0.42209302325581394], [0.4967234600262123, 0.49658002735978113, 0.491869918699187], [0.5973207249802994, 0.5921696574225123, 0.5936222403924775], [0.5973207249802994, 0.5921696574225123, 0.5936222403924775], [0.7490118577075099, 0.7333333333333333, 0.7484536082474227], [0.4967234600262123, 0.49658002735978113, 0.491869918699187]]},
    'all ignored': {'means': [nan, nan, nan, nan, nan, nan, nan], 'per_class': [[nan, nan], [nan, nan], [nan, nan], [nan, nan], [nan, nan], [nan, nan]]},
    'missed, NaN as 0': {'means': [0.5286738351254481, 0.32750972797412425, 0.5331492588838184, 0.435524605924755, 0.43552460592475506, 0.3917296836528999, 0.5331492588838184], 'per_class': [[0.39536340852130325, 0.0, 0.5871657754010695], [0.8751733703190014, 0.0, 0.7242744063324539], [0.5666816344858554, 0.0, 0.7398921832884097], [0.5666816344858554, 0.0, 0.7398921832884098], [0.41899070385126164, 0.0, 0.756198347107438], [0.8751733703190014, 0.0, 0.7242744063324539]]},
    'absent, NaN as 0': {'means': [0.8104838709677419, 0.43456236093664685, 0.5226418946570717, 0.5231033343635255, 0.5231033343635256, 0.5235787794643282, 0.5226418946570717], 'per_class': [[0.7532088681446908, 0.5504782146652497, 0.0], [0.8612408272181454, 0.7066848567530696, 0.0], [0.8592346089850249, 0.7100753941055518, 0.0], [0.859234608985025, 0.7100753941055518, 0.0], [0.8572377158034529, 0.7134986225895317, 0.0], [0.8612408272181454, 0.7066848567530696, 0.0]]},
    'absent of two, NaN as -1': {'means': [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 'per_class': [[1.0, -1.0], [1.0, -1.0], [1.0, -1.0], [1.0, -1.0], [1.0, -1.0], [1.0, -1.0]]},
}


def scores(name):
    seed, classes, k, what, nan_to_num = CASES[name]
    pred, truth = images(seed, classes, k, what)
    return m.scores(m.confusion(pred, truth, classes, outside="keep"), n_classes=classes, nan_to_num=nan_to_num)


@pytest.mark.parametrize("name", CASES)
def test_unrounded_values_are_those_of_mmsegmentation(name):
    got, want = scores(name), VECTORS[name]
    np.testing.assert_allclose([got[k] for k in MEANS], want["means"], rtol=0, atol=1e-12)
    if want["per_class"]:
        np.testing.assert_allclose([got["per_class"][k] for k in PER_CLASS], want["per_class"], rtol=0, atol=1e-12)


def test_the_cases_are_what_their_names_say():
    states = {"absent from both": [nan] * 6, "present, never predicted": [0, 0, 0, nan, nan, 0], "predicted, never present": [0, nan, 0, nan, 0, nan],
              "both, no overlap": [0, 0, 0, nan, 0, 0]}
    for name, rule in states.items():
        k = CASES[name][2]
        np.testing.assert_array_equal([row[k] for row in VECTORS[name]["per_class"]], rule)
        np.testing.assert_array_equal([scores(name)["per_class"][s][k] for s in PER_CLASS], rule)
    assert VECTORS["present, never predicted"]["means"][4] > VECTORS["present, never predicted"]["means"][3] + 0.1  # mFscore leaves the missed class out, mDice does not


if __name__ == "__main__":
    for name in CASES:
        print(f"    {name!r}: {oracle(name)!r},")
