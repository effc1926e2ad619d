"""Calibration: its parts against plain arithmetic, and its error on drawings."""

import numpy as np
import pytest
from places import EXAMPLES

from dataset_webperson import DataError, WebPerson
from modeling_gadms.gallery import Gallery
from modeling_gadms.gallery.calibration import (
    BINS,
    calibration_error,
    error_with_interval,
    fit_curve,
    fitted_apart,
    moments,
    read_calibration,
    standardise,
)
from modeling_gadms.training.starting_points import load_starting_point


def test_a_cosine_is_standardised_by_those_of_all_images():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 8)) + 1
    query = rng.standard_normal(8)
    mean, covariance = moments([vectors[:20], vectors[20:]])
    cosines = vectors @ query
    expected = [(cosine - np.mean(cosines)) / np.std(cosines) for cosine in cosines]
    assert np.allclose(standardise(query, cosines, mean, covariance), expected)


def test_the_curve_is_the_likeliest_of_a_grid():
    rng = np.random.default_rng(0)
    z = rng.normal(2, 1.5, 400)
    is_true = rng.random(400) < 1 / (1 + np.exp(4 - 1.5 * z))

    def likelihood(intercept, slope):
        shares = 1 / (1 + np.exp(-(intercept + slope * z)))
        return np.log(np.where(is_true, shares, 1 - shares)).sum()

    intercept, slope = fit_curve(z, is_true)
    grid = [(a, b) for a in np.linspace(-6, -2, 81) for b in np.linspace(0.5, 2.5, 81)]
    best = max(grid, key=lambda curve: likelihood(*curve))
    assert abs(intercept - best[0]) < 0.06 and abs(slope - best[1]) < 0.03
    assert likelihood(intercept, slope) >= likelihood(*best) - 1e-3
    for nothing in (np.zeros(400, dtype=bool), np.ones(400, dtype=bool)):
        with pytest.raises(DataError, match="nothing to tell apart"):
            fit_curve(z, nothing)
    assert np.isfinite(fit_curve(np.array([-1.0, 1.0]), np.array([False, True]))).all()  # no overlap


def test_the_error_is_the_mean_distance_over_ten_equal_parts():
    rng = np.random.default_rng(0)
    shares, is_true = rng.random(997), rng.random(997) < 0.4
    pairs = sorted(zip(shares, is_true, strict=True), key=lambda pair: pair[0])
    expected, start = 0.0, 0
    for part in range(BINS):
        stop = start + 997 // BINS + (part < 997 % BINS)
        stated = sum(share for share, _ in pairs[start:stop]) / (stop - start)
        right = sum(truth for _, truth in pairs[start:stop]) / (stop - start)
        expected += abs(stated - right) * (stop - start) / 997
        start = stop
    assert calibration_error(shares, is_true) == pytest.approx(expected, abs=1e-9)


def test_true_shares_have_a_small_error_and_wrong_ones_a_large_one():
    rng = np.random.default_rng(0)
    shares = rng.random(2000)
    is_true, groups = rng.random(2000) < shares, np.arange(2000) // 10
    error, low, high = error_with_interval(shares, is_true, groups)
    assert low < high < 0.05 and error < 0.04
    error, low, _ = error_with_interval(np.minimum(1, shares + 0.2), is_true, groups)
    assert low > 0.1


def test_a_half_is_judged_by_the_curve_of_the_other():
    rng = np.random.default_rng(0)
    z, groups = rng.normal(0, 1, 200), np.arange(200) // 5
    is_true = rng.random(200) < 1 / (1 + np.exp(-2 * z))
    shares = fitted_apart(z, is_true, groups)
    for half in (0, 1):
        intercept, slope = fit_curve(z[groups % 2 != half], is_true[groups % 2 != half])
        own = groups % 2 == half
        assert np.allclose(shares[own], 1 / (1 + np.exp(-intercept - slope * z[own])))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A gallery of 300 drawings, by the shipped small CLIP, and their captions."""
    folder = tmp_path_factory.mktemp("drawn")
    builder = WebPerson(
        cache_dir=str(folder / "cache"),
        config_name="synthetic",
        image_size=(48, 24),
        num_train_persons=2,
        num_validation_persons=2,
        num_test_persons=150,
    )
    builder.download_and_prepare()
    rows = builder.as_dataset(split="test")
    model, processor = load_starting_point(str(EXAMPLES / "small_clip"), (48, 48))
    gallery = Gallery.create(folder / "people", (model, processor))
    gallery.add(rows)
    return gallery, [(row["image_path"], row["caption1"]) for row in rows.remove_columns("image")]


def test_on_drawings_the_stated_share_is_the_true_one(drawn):
    gallery, captions = drawn
    assert gallery.search(captions[0][1])[0].probability is None
    facts = gallery.calibrate(captions, same="person_id", threshold=0.3)
    assert facts["captions"] == len(set(text for _, text in captions))
    assert facts["error"] < 0.05 and facts["error_low"] <= facts["error"] and facts["error_high"] < 0.08, facts
    assert 0.02 < facts["true_share"] < 0.5 and gallery.threshold == 0.3
    # it tells apart: true results have a higher share
    shares = {True: [], False: []}
    persons = {uri: number for uri, number in _persons(gallery)}
    for (uri, _), hits in zip(captions[:60], gallery.search_batch([text for _, text in captions[:60]]), strict=True):
        for hit in hits:
            shares[persons[hit.uri] == persons[uri]].append(hit.probability)
    assert np.mean(shares[True]) > 2 * np.mean(shares[False])
    hit = gallery.search(captions[0][1])[0]
    kept = read_calibration(gallery.path)
    query = gallery.encoder().texts([captions[0][1]])[0]
    z = (hit.score - query @ kept.mean) / np.sqrt(query @ kept.covariance @ query)
    assert hit.probability == pytest.approx(1 / (1 + np.exp(-kept.intercept - kept.slope * z)), abs=1e-6)
    # an image is no sentence; "not this" changes the order, not what the sentence says
    assert gallery.search(images=[f"id:{hit.id}"])[0].probability is None
    far = gallery.search(captions[0][1], unlike=[gallery.search(captions[0][1])[9].id], k=3)
    near = {hit.id: hit.probability for hit in gallery.search(captions[0][1], k=300)}
    assert all(hit.probability == pytest.approx(near[hit.id], abs=1e-9) for hit in far)


def _persons(gallery):
    found = gallery._rows().read(["uri", "person_id"])
    return zip(found["uri"].to_pylist(), found["person_id"].to_pylist(), strict=True)


def test_captions_of_other_images_calibrate_nothing(drawn):
    with pytest.raises(DataError, match="none of the 1 captions names an image of this gallery"):
        drawn[0].calibrate([("elsewhere.png", "a coat")])
    with pytest.raises(DataError, match="no column 'track' that tells the same person"):
        drawn[0].calibrate(drawn[1], same="track")
    with pytest.raises(DataError, match="a share between 0 and 1"):
        drawn[0].calibrate(drawn[1], threshold=2)
    with pytest.raises(DataError, match="1 caption: one half"):
        drawn[0].calibrate(drawn[1][:1])
