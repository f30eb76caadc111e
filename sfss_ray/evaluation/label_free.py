"""Label-free scores of a model, from its predictions on held-out target images and their masks.

No score can be trusted alone. A model that predicts one class everywhere agrees with its teacher, has
no entropy and the densest neighbourhoods. `lost_variety` recognises such a collapsed model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfss_ray.evaluation.source_reference import SourceReference, on_grid
from sfss_ray.evaluation.view_consistency import ViewConsistency


class MaskInformation:
    """Mutual information between mask and predicted class, in nats.

    I(mask; class) = H(class) - sum_k (n_k / n) H(class | mask k), over the n pixels inside masks,
    n_k of them in mask k. It is high only if predictions agree inside masks AND differ between them.
    A model that predicts one class everywhere scores 0.

    Args:
        num_classes: C.
        weights: (C,) weight of a pixel of each predicted class, default 1.
    """

    def __init__(self, num_classes: int, weights: np.ndarray | None = None):
        self.weights = np.ones(num_classes) if weights is None else weights
        self.total = np.zeros(num_classes)
        self.conditional = 0.0  # sum_k n_k H(class | mask k)
        self._images: list[tuple[np.ndarray, float]] = []  # total and conditional of each image

    def add(self, predictions: np.ndarray, mask_ids: np.ndarray) -> None:
        """Count one image.

        Args:
            predictions: (H, W) class ids.
            mask_ids: (H, W), 0 = no mask.
        """
        classes = len(self.total)
        inside = mask_ids > 0
        if not inside.any():
            self._images.append((np.zeros(classes), 0.0))
            return
        _, indices = np.unique(mask_ids[inside], return_inverse=True)
        pairs = indices.astype(np.int64) * classes + predictions[inside]
        counts = np.bincount(pairs, minlength=(indices.max() + 1) * classes).reshape(-1, classes)
        histograms = counts * self.weights
        total = histograms.sum(0)
        conditional = float((histograms.sum(1) * entropy(histograms)).sum())
        self.total += total
        self.conditional += conditional
        self._images.append((total, conditional))

    def value(self) -> float:
        """Return the score, 0 to log(C); 0 when no pixel is inside a mask."""
        return float(_information(self.total[None], np.array([self.conditional]))[0])

    def leave_one_out(self) -> np.ndarray:
        """Return (N,) scores of all images but one, in the order in which the images were added."""
        totals = np.array([total for total, _ in self._images]).reshape(-1, len(self.total))
        conditionals = np.array([conditional for _, conditional in self._images])
        return _information(self.total - totals, self.conditional - conditionals)


def _information(totals: np.ndarray, conditionals: np.ndarray) -> np.ndarray:
    """Return the score of each row of totals (K, C) with its conditional (K,); 0 without pixels."""
    num_pixels = totals.sum(1)
    has_pixels = num_pixels > 1e-6  # a difference of equal sums may leave a rounding error
    values = entropy(totals) - conditionals / np.where(has_pixels, num_pixels, 1.0)
    return np.where(has_pixels, np.maximum(values, 0.0), 0.0)


def balancing_weights(class_share: np.ndarray, min_share: float = 0.002) -> np.ndarray:
    """Return the weights of `balanced_mask_information`: 1 / sqrt(share of the class).

    mIoU counts a rare class as much as the road, while plain pixel counts hardly notice it. Equal
    weights of the classes would let the noise of the rarest one decide. The square root lies in
    between.

    Args:
        class_share: (C,) shares of pixels that the source model predicts of each class. They are
            the same for all students: its own shares would reward a student for predicting a class
            less often.
        min_share: Smaller shares count as this one.
    """
    return 1 / np.sqrt(np.maximum(class_share, min_share))


AGREEMENT_POWER = 0.25
"""Power of the agreement. With 1 the score would hardly let a student leave its source model."""


class AnchoredInformation:
    """Information of the masks, checked by the views of the student and of its source model.

    The product I(mask; class) * V * S^(1/4), in nats, with the mean IoU over the classes that the source
    model predicts between a student's predictions of images and

        V: its own predictions of their views,
        S: the source model's predictions of their views.

    Each factor has a weakness that the others make up for: the information rises when a student splits
    classes wrongly but along masks, students are trained to be consistent, and S rewards a student that
    learns nothing. The source model itself has no S of 1, but S = V up to the grid of the reference.

    Args:
        information: Counted elsewhere, for the same images.
        reference: Of the source model.
    """

    def __init__(self, information: MaskInformation, reference: SourceReference):
        self._information = information
        self._classes = len(reference.class_share)
        self._reference = reference
        self._consistency = ViewConsistency(reference.classes)
        self._agreement = ViewConsistency(reference.classes)

    def add(self, predictions: np.ndarray, views: list[np.ndarray]) -> None:
        """Count the next image: (H, W) class ids of the image, and of each view on its pixels."""
        source_views = self._reference.views[self._agreement.num_images]
        self._agreement.add(self._classes, on_grid(predictions), list(source_views))
        self._consistency.add(self._classes, predictions, views)

    def value(self) -> float:
        """Return the score, 0 to log(C); NaN without images."""
        consistency = self._consistency.value()
        return self._information.value() * consistency * self._agreement.value() ** AGREEMENT_POWER

    def leave_one_out(self) -> np.ndarray:
        """Return (N,) scores of all images but one, in the order in which the images were added."""
        consistency = self._consistency.leave_one_out()
        agreement = self._agreement.leave_one_out() ** AGREEMENT_POWER
        return self._information.leave_one_out() * consistency * agreement


class NeighbourhoodDensity:
    """Soft neighbourhood density of predicted probabilities, in nats.

    Source: Saito et al. 2021, "Tune it the Right Way". Each sampled cell has a distribution of
    similarity over the other cells of its image; the score is the mean entropy of these. With p_i
    the probabilities of N cells scaled to length 1, s_ij = p_i . p_j and j != i:

        w_i = softmax_j(s_ij / temperature),  score = mean_i -sum_j w_ij log w_ij

    The score is high when cells lie in dense groups of similar predictions. It ranges from 0 to
    log(N - 1), which one class everywhere reaches.

    Args:
        cells: Most cells sampled per image.
        temperature: Of the softmax; a smaller one counts only nearer neighbours.
        seed: Of the sampling.
    """

    def __init__(self, cells: int = 256, temperature: float = 0.05, seed: int = 0):
        self.cells, self.temperature, self.seed = cells, temperature, seed
        self.images: list[float] = []

    def add(self, probabilities: np.ndarray) -> None:
        """Count one image: probabilities (C, H, W). Every model is sampled at the same cells."""
        cells = probabilities.reshape(len(probabilities), -1).T
        rng = np.random.default_rng([self.seed, len(self.images)])
        sampled = rng.choice(len(cells), min(self.cells, len(cells)), replace=False)
        cells = cells[sampled].astype(np.float64)
        if len(cells) < 2:
            self.images.append(0.0)
            return
        cells /= np.maximum(np.linalg.norm(cells, axis=1, keepdims=True), 1e-12)
        similarity = cells @ cells.T / self.temperature
        np.fill_diagonal(similarity, -np.inf)  # a cell is not its own neighbour
        weights = np.exp(similarity - similarity.max(1, keepdims=True))
        self.images.append(float(entropy(weights).mean()))

    def value(self) -> float:
        """Return the mean over images; 0 without images."""
        return float(np.mean(self.images)) if self.images else 0.0


class Agreement:
    """Agreement of two networks: mean IoU of their predictions over classes.

    Each class has the same weight, so that agreement on the road does not hide disagreement on
    poles. Classes that neither network predicts are left out.
    """

    def __init__(self, num_classes: int):
        self.both = np.zeros(num_classes, np.int64)
        self.either = np.zeros(num_classes, np.int64)

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Count one image: (H, W) class ids that each network predicts."""
        classes = len(self.both)
        same = np.bincount(first[first == second], minlength=classes)
        histograms = [np.bincount(ids.ravel(), minlength=classes) for ids in (first, second)]
        self.both += same
        self.either += histograms[0] + histograms[1] - same

    def value(self) -> float:
        """Return the agreement, 0 to 1; 0 without images."""
        predicted = self.either > 0
        if not predicted.any():
            return 0.0
        return float((self.both[predicted] / self.either[predicted]).mean())


@dataclass(frozen=True)
class Variety:
    """How many classes a model predicts, and how evenly; recognises a collapse."""

    classes: int
    """Classes with at least a thousandth of the predicted pixels."""
    entropy: float
    """Entropy of the class histogram in nats; 0 when one class is predicted everywhere."""

    @staticmethod
    def of(histogram: np.ndarray) -> Variety:
        """Measure a (C,) histogram of predicted pixels."""
        return Variety(predicted_classes(histogram), float(entropy(histogram[None])[0]))


MIN_CLASS_RATIO, MIN_ENTROPY_RATIO = 0.7, 0.7


def lost_variety(model: Variety, source: Variety) -> bool:
    """Return whether a model collapsed, compared with its source model on the same images.

    It collapsed when it predicts fewer than 70 % of the source model's classes, or when its class
    histogram has less than 70 % of the source model's entropy.
    """
    lost_classes = model.classes < MIN_CLASS_RATIO * source.classes
    return lost_classes or model.entropy < MIN_ENTROPY_RATIO * source.entropy


class LabelFreeScores:
    """All label-free scores of a model, accumulated image by image.

    Args:
        num_classes: C.
        reference: Of the source model on the same images; needed for balanced_mask_information and
            anchored_information.
    """

    def __init__(self, num_classes: int, reference: SourceReference | None = None):
        self.histogram = np.zeros(num_classes)
        self._information = MaskInformation(num_classes)
        self._balanced = self._anchored = None
        if reference is not None:
            weights = balancing_weights(np.array(reference.class_share))
            self._balanced = MaskInformation(num_classes, weights)
            self._anchored = AnchoredInformation(self._information, reference)
        self._agreement = Agreement(num_classes)
        self._density = NeighbourhoodDensity()
        self._entropy: list[float] = []
        self._has_masks = self._has_teacher = False

    def add(
        self,
        probabilities: np.ndarray,
        mask_ids: np.ndarray | None = None,
        teacher: np.ndarray | None = None,
        views: list[np.ndarray] | None = None,
    ) -> None:
        """Count one image, in the order of the reference.

        Args:
            probabilities: (C, H, W) that the model predicts.
            mask_ids: (H, W), 0 = no mask.
            teacher: (H, W) class ids that its teacher predicts.
            views: (H, W) class ids that the model predicts of each view; needed with masks and a
                reference.
        """
        predictions = probabilities.argmax(0)
        self.histogram += np.bincount(predictions.ravel(), minlength=len(self.histogram))
        self._entropy.append(-(probabilities * np.log(probabilities + 1e-12)).sum(0).mean())
        self._density.add(probabilities)
        if mask_ids is not None:
            self._has_masks |= bool((mask_ids > 0).any())
            self._information.add(predictions, mask_ids)
            if self._balanced and self._anchored:
                assert views is not None, "the anchored score needs views"
                self._balanced.add(predictions, mask_ids)
                self._anchored.add(predictions, views)
        if teacher is not None:
            self._has_teacher = True
            self._agreement.add(predictions, teacher)

    def values(self) -> dict[str, float]:
        """Return the scores that could be computed by name; empty without images.

        Those that compare predictions with masks need a mask on one of the images.
        """
        if not self._entropy:
            return {}
        variety = Variety.of(self.histogram)
        scores = {"entropy": float(np.mean(self._entropy))}
        scores["neighbourhood_density"] = self._density.value()
        scores["predicted_classes"] = float(variety.classes)
        scores["class_entropy"] = variety.entropy
        if self._has_masks:
            scores["mask_information"] = self._information.value()
            if self._balanced and self._anchored:
                scores["balanced_mask_information"] = self._balanced.value()
                scores["anchored_information"] = self._anchored.value()
        if self._has_teacher:
            scores["agreement"] = self._agreement.value()
        return scores

    def leave_one_out(self) -> dict[str, tuple[float, ...]]:
        """Return the mask scores of all images but one, by name, in the order of the images.

        Without any mask there is none.
        """
        scores = {}
        if self._has_masks:
            scores["mask_information"] = tuple(self._information.leave_one_out().tolist())
            if self._balanced and self._anchored:
                balanced = self._balanced.leave_one_out()
                scores["balanced_mask_information"] = tuple(balanced.tolist())
                scores["anchored_information"] = tuple(self._anchored.leave_one_out().tolist())
        return scores


def worth(name: str, value: float) -> float:
    """Return a score so that higher is better: entropy is negated, all others stay."""
    return -value if name == "entropy" else value


def entropy(counts: np.ndarray) -> np.ndarray:
    """Return the entropy in nats of each row of counts (K, C); an empty row has 0."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1e-12)
    return 0.0 - (share * np.log(np.maximum(share, 1e-12))).sum(1)


def predicted_classes(histogram: np.ndarray, min_share: float = 1e-3) -> int:
    """Count the classes with more than `min_share` of the predicted pixels in a (C,) histogram."""
    return int((histogram > min_share * max(histogram.sum(), 1)).sum())
