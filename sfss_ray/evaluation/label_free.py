"""Label-free scores of a model, from its predictions on held-out target images and their masks.

None of them can be trusted alone: a model that predicts one class everywhere agrees with itself, is
sure of itself and has the densest neighbourhoods. `lost_variety` tells such a model from a sound one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


class MaskInformation:
    """Mutual information between mask and predicted class, in nats.

    I(mask; class) = H(class) - sum_k (n_k / n) H(class | mask k), over the pixels inside masks, the
    class histograms area-weighted: high only if predictions agree inside masks AND differ between
    them, so a model that predicts one class everywhere scores 0.

    Args:
        weights: (C,) how much a pixel of each predicted class counts; default 1 each.
    """

    def __init__(self, num_classes: int, weights: np.ndarray | None = None):
        self.weights = np.ones(num_classes) if weights is None else weights
        self.total = np.zeros(num_classes)
        self.conditional = 0.0  # sum_k n_k H(class | mask k)

    def add(self, predictions: np.ndarray, mask_ids: np.ndarray) -> None:
        """Count one image: predictions (H, W) class ids, mask_ids (H, W), 0 = no mask."""
        classes = len(self.total)
        inside = mask_ids > 0
        if not inside.any():
            return
        _, dense = np.unique(mask_ids[inside], return_inverse=True)
        pairs = dense.astype(np.int64) * classes + predictions[inside]
        table = np.bincount(pairs, minlength=(dense.max() + 1) * classes).reshape(-1, classes)
        table = table * self.weights
        self.total += table.sum(0)
        self.conditional += float((table.sum(1) * entropy(table)).sum())

    def value(self) -> float:
        """The score: 0 to log(number of classes); 0 when nothing was counted."""
        pixels = self.total.sum()
        if not pixels:
            return 0.0
        return max(0.0, float(entropy(self.total[None])[0] - self.conditional / pixels))


def balancing_weights(class_share: np.ndarray, least: float = 0.002) -> np.ndarray:
    """Weights for `balanced_mask_information`: 1 / sqrt(share of the class).

    mIoU counts a rare class as much as the road; plain pixel counts do not see rare classes at all. The
    shares are the source model's, the same for all students: a student's own would reward it for
    predicting a class less. The square root lies between pixels (noisy for no class, blind for rare
    ones) and classes (noise of the rarest decides); shares below `least` count as `least`.
    """
    return 1 / np.sqrt(np.maximum(class_share, least))


class NeighbourhoodDensity:
    """Soft neighbourhood density of predicted probabilities, in nats (Saito et al. 2021, "Tune it the
    Right Way"): the entropy of each cell's similarity to the other cells of its image, averaged.

    With p_i the probabilities of N sampled cells scaled to length 1, s_ij = p_i . p_j and j != i:
    w_i = softmax_j(s_ij / temperature), score = mean_i -sum_j w_ij log w_ij: high when cells lie in
    dense groups of like predictions. 0 to log(N - 1), which one class everywhere reaches.

    Args:
        cells: Cells drawn per image, at most.
        temperature: Of the softmax; smaller looks at nearer neighbours alone.
    """

    def __init__(self, cells: int = 256, temperature: float = 0.05, seed: int = 0):
        self.cells, self.temperature, self.seed = cells, temperature, seed
        self.images: list[float] = []

    def add(self, probabilities: np.ndarray) -> None:
        """Look at one image: probabilities (C, H, W); the same cells are drawn for every model."""
        rows = probabilities.reshape(len(probabilities), -1).T
        rng = np.random.default_rng([self.seed, len(self.images)])
        chosen = rng.choice(len(rows), min(self.cells, len(rows)), replace=False)
        rows = rows[chosen].astype(np.float64)
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        similarity = rows @ rows.T / self.temperature
        np.fill_diagonal(similarity, -np.inf)
        weight = np.exp(similarity - similarity.max(1, keepdims=True)) if len(rows) > 1 else rows
        self.images.append(float(entropy(weight).mean()) if len(rows) > 1 else 0.0)

    def value(self) -> float:
        """Mean over images; 0 when nothing was counted."""
        return float(np.mean(self.images)) if self.images else 0.0


class Agreement:
    """How far two networks predict the same: mean over classes of intersection over union.

    Each class counts alike, so that agreeing on the road does not hide a quarrel over poles. Classes
    that neither predicts are left out.
    """

    def __init__(self, num_classes: int):
        self.both = np.zeros(num_classes, np.int64)
        self.either = np.zeros(num_classes, np.int64)

    def add(self, ones: np.ndarray, others: np.ndarray) -> None:
        """Count one image: the class ids (H, W) that the two predict."""
        classes = len(self.both)
        same = np.bincount(ones[ones == others], minlength=classes)
        first, second = (np.bincount(ids.ravel(), minlength=classes) for ids in (ones, others))
        self.both += same
        self.either += first + second - same

    def value(self) -> float:
        """0 to 1; 0 when nothing was counted."""
        seen = self.either > 0
        return float((self.both[seen] / self.either[seen]).mean()) if seen.any() else 0.0


@dataclass(frozen=True)
class Variety:
    """What classes a model predicts: the guard against collapse."""

    classes: int
    """Classes with at least a thousandth of the predicted pixels."""
    entropy: float
    """Of the class histogram, in nats; 0 when one class is predicted everywhere."""

    @staticmethod
    def of(histogram: np.ndarray) -> Variety:
        """From predicted pixels per class (C,)."""
        return Variety(predicted_classes(histogram), float(entropy(histogram[None])[0]))


LEAST_CLASSES, LEAST_ENTROPY = 0.7, 0.7


def lost_variety(model: Variety, source: Variety) -> bool:
    """Whether a model collapsed: it predicts under 70 % of the classes that its source model does on
    the same images, or its class histogram keeps under 70 % of the source's entropy.
    """
    few = model.classes < LEAST_CLASSES * source.classes
    return few or model.entropy < LEAST_ENTROPY * source.entropy


class LabelFreeScores:
    """All scores of a model that need no labels, added up image by image.

    Args:
        source_share: (C,) share of pixels that the source model predicts of each class.
    """

    def __init__(self, num_classes: int, source_share: np.ndarray | None = None):
        self.histogram = np.zeros(num_classes)
        self._information = MaskInformation(num_classes)
        self._balanced = None
        if source_share is not None:
            self._balanced = MaskInformation(num_classes, balancing_weights(source_share))
        self._agreement = Agreement(num_classes)
        self._density = NeighbourhoodDensity()
        self._entropy: list[float] = []
        self._masks = self._teacher = False

    def add(
        self,
        probabilities: np.ndarray,
        mask_ids: np.ndarray | None = None,
        teacher: np.ndarray | None = None,
    ) -> None:
        """Count one image.

        Args:
            probabilities: (C, H, W) of the model.
            mask_ids: (H, W), 0 = no mask.
            teacher: (H, W) class ids that its teacher predicts.
        """
        predictions = probabilities.argmax(0)
        self.histogram += np.bincount(predictions.ravel(), minlength=len(self.histogram))
        self._entropy.append(-(probabilities * np.log(probabilities + 1e-12)).sum(0).mean())
        self._density.add(probabilities)
        if mask_ids is not None:
            self._masks = True
            self._information.add(predictions, mask_ids)
            if self._balanced:
                self._balanced.add(predictions, mask_ids)
        if teacher is not None:
            self._teacher = True
            self._agreement.add(predictions, teacher)

    def values(self) -> dict[str, float]:
        """Scores by name, those that could be computed; none without images."""
        if not self._entropy:
            return {}
        variety = Variety.of(self.histogram)
        scores = {"entropy": float(np.mean(self._entropy))}
        scores["neighbourhood_density"] = self._density.value()
        scores["predicted_classes"] = float(variety.classes)
        scores["class_entropy"] = variety.entropy
        if self._masks:
            scores["mask_information"] = self._information.value()
            if self._balanced:
                scores["balanced_mask_information"] = self._balanced.value()
        if self._teacher:
            scores["agreement"] = self._agreement.value()
        return scores


def worth(name: str, value: float) -> float:
    """A score's value as what a search maximises: low entropy is better, of all others high."""
    return -value if name == "entropy" else value


def entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy in nats of each row of counts (K, C); an empty row has 0."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
    return 0.0 - (share * np.log(np.maximum(share, 1e-12))).sum(1)


def predicted_classes(total: np.ndarray, least_share: float = 1e-3) -> int:
    """Number of classes with at least this share of the predicted pixels: the collapse guard."""
    return int((total > least_share * max(total.sum(), 1)).sum())
