"""How likely each value of a family is the true one, given the image and what the caption says.

Patch evidence learns from captions that are partly false, so within a family it tells how likely an image makes each
value *said*. Three numbers turn that into how likely each is *true*, all estimated from the words as they are said:
how often each value is said, a temperature, and the share of false words.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

TEMPERATURES = np.linspace(0.2, 2.0, 37)  # tried, of a family's evidence
LEAST_GAIN = 0.02  # nats a word: evidence that explains what is said by less is left out
UNSHOWN_DOUBT = 0.49  # at most: the word that is said stays the likeliest
SUREST = 0.1  # share of a family's words about which the evidence is surest
CLEAREST = 0.1  # quantile, over families, of the disagreement there
STEPS = 30  # of the expectation-maximisation that takes mistakes out of what is said


@dataclass(frozen=True)
class FamilyCalibration:
    """What is estimated of one family.

    Attributes:
        frequency (`np.ndarray` of shape `(V,)`): share of the family's words that say each value; above 0.
        temperature (`float`): the evidence is multiplied by it; 0 where images do not show the family.
        disagreement (`float`): share of the words that say another value than the likeliest, among the tenth about
            which the evidence is surest.
    """

    frequency: np.ndarray
    temperature: float
    disagreement: float


def calibrate(evidence: np.ndarray, said: np.ndarray) -> FamilyCalibration:
    """Estimate a family's numbers from its words.

    The temperature is the one that makes what is said likeliest. Where it hardly becomes likelier than by frequency
    alone, the images do not show the family, and its evidence is left out: words would be replaced at random.

    Args:
        evidence (`np.ndarray` of shape `(N, V)`): patch evidence of each value at the place of each word, in nats.
        said (`np.ndarray` of shape `(N,)`): the value that the word says, 0 to `V - 1`.
    """
    counts = np.bincount(said, minlength=evidence.shape[1]) + 0.5  # half a word more, so that none is impossible
    frequency = counts / counts.sum()
    words = np.arange(len(said))
    likelihoods = [np.log(_softmax(t * evidence + np.log(frequency))[words, said]).mean() for t in TEMPERATURES]
    temperature = float(TEMPERATURES[int(np.argmax(likelihoods))])
    if max(likelihoods) - np.log(frequency)[said].mean() < LEAST_GAIN:
        temperature = 0.0
    probabilities = _softmax(temperature * evidence + np.log(frequency))
    surest = probabilities.max(axis=1)
    surest = surest >= np.quantile(surest, 1 - SUREST)
    disagreement = float((probabilities.argmax(axis=1) != said)[surest].mean())
    return FamilyCalibration(frequency, temperature, disagreement)


def share_of_false(families: Mapping[str, FamilyCalibration]) -> float:
    """The share of false words, from the families that images show best.

    Where the evidence is sure of the true value, a word that says another one is false. Families that images hardly
    show disagree more, and do not count: it is a low quantile over the families, in 0.01 to 0.9.
    """
    found = np.quantile([one.disagreement for one in families.values()], CLEAREST)
    return float(np.clip(found, 0.01, 0.9))


def true_probabilities(
    evidence: np.ndarray, said: np.ndarray, calibration: FamilyCalibration, share_false: float
) -> np.ndarray:
    """Probability of each value to be the true one, `(N, V)` float64, rows that sum to 1.

    Of a family that the images do not show, every word is false with the share of false words, and none is replaced
    for being rare. Else a false word says another value as often as that is said at all. For each word,
    expectation-maximisation finds the probabilities of the true values that best explain how likely the image makes
    each value said; then the value that is said counts, as Bayes' rule has it.

    Args:
        evidence, said: as in [`calibrate`].
        calibration ([`FamilyCalibration`]): of the family.
        share_false (`float`): probability that a word is false, in (0, 1).
    """
    frequency, values = calibration.frequency, np.arange(len(calibration.frequency))
    if calibration.temperature == 0:
        doubt = min(share_false, UNSHOWN_DOUBT)
        true = doubt * frequency / (1 - frequency[said])[:, None]
        true[np.arange(len(said)), said] = 1 - doubt
        return true
    says = share_false * frequency[None, :] / (1 - frequency)[:, None]  # row: true value, column: what is said
    says[values, values] = 1 - share_false
    expected = _softmax(calibration.temperature * evidence + np.log(frequency))
    true = np.tile(frequency, (len(said), 1))
    for _ in range(STEPS):
        true = true * ((expected / (true @ says)) @ says.T)
        true /= true.sum(axis=1, keepdims=True)
    true = true * says[:, said].T
    return true / true.sum(axis=1, keepdims=True)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
