"""Judges images of digits: is each the digit asked for, and are all distributed like real ones?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from optimize.ir.errors import QualityError
from optimize.measure.frechet import (
    PrincipalComponents,
    frechet_distance,
    frechet_with_interval,
)
from optimize.measure.quality import Interval
from optimize.recipes.zoo.digits_data import CLASS_COUNT, DigitsData, flatten_images

if TYPE_CHECKING:
    from sklearn.svm import SVC

COMPONENT_COUNT = 20


@dataclass(frozen=True)
class DigitsJudge:
    """A classifier and a Frechet reference, both made from the train split only.

    Attributes:
        classifier: a support-vector classifier of flat images.
        components: the features of the Frechet distance.
        train_rows: [1437, 1024], the train images themselves, float64.
        held_out_rows: [360, 1024], images that neither the judge nor a model was trained on.
        held_out_labels: [360], int64.
    """

    classifier: SVC
    components: PrincipalComponents
    train_rows: npt.NDArray[np.float64]
    held_out_rows: npt.NDArray[np.float64]
    held_out_labels: npt.NDArray[np.int64]

    @classmethod
    def fit(cls, data: DigitsData) -> DigitsJudge:
        """Trains on the train split; takes about a second.

        Raises:
            ModuleNotFoundError: scikit-learn is not installed.
        """
        from sklearn.svm import SVC

        rows = flatten_images(data.train.images)
        return cls(
            classifier=SVC(C=10.0, gamma="scale").fit(rows, data.train.labels.numpy()),
            components=PrincipalComponents.fit(rows, COMPONENT_COUNT),
            train_rows=rows,
            held_out_rows=flatten_images(data.held_out.images),
            held_out_labels=data.held_out.labels.numpy(),
        )

    def accuracy(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of images recognised as their label, in [0, 1].

        Args:
            images: [B, 1, 32, 32], in [-1, 1].
            labels: [B], int64, in [0, 9]; the null label cannot be judged.
        Raises:
            QualityError: there are no images, the counts differ, or a label is outside [0, 9].
        """
        if len(images) == 0 or len(images) != len(labels):
            raise QualityError(
                f"DigitsJudge: found {len(images)} images and {len(labels)} labels, expected equal "
                "counts above 0; pass one label per image."
            )
        if int(labels.min()) < 0 or int(labels.max()) >= CLASS_COUNT:
            raise QualityError(
                f"DigitsJudge: found labels up to {int(labels.max())}, expected [0, 9]; ask for "
                "digits, not for the null label."
            )
        return self._accuracy(flatten_images(images), labels.numpy())

    def held_out_accuracy(self) -> float:
        """Accuracy on real held-out images: the most that generated ones can be asked for."""
        return self._accuracy(self.held_out_rows, self.held_out_labels)

    def frechet(self, images: torch.Tensor) -> float:
        """Frechet distance of images [B, 1, 32, 32] to the train split."""
        return frechet_distance(self.features(flatten_images(images)), self._reference())

    def frechet_interval(
        self, images: torch.Tensor, resamples: int = 200, seed: int = 0
    ) -> Interval:
        """The same with a bootstrap interval over the images."""
        features = self.features(flatten_images(images))
        return frechet_with_interval(features, self._reference(), resamples, seed)

    def frechet_floor(self, resamples: int = 200, seed: int = 0) -> Interval:
        """Distance of the 360 real held-out images to the train split: what "real" scores."""
        features = self.features(self.held_out_rows)
        return frechet_with_interval(features, self._reference(), resamples, seed)

    def nearest_train_distance(self, images: torch.Tensor) -> float:
        """Mean over images of the root mean square distance to the closest train image.

        Far below that of held-out images, it would mean that the model copies its training data.
        """
        return self._nearest(flatten_images(images))

    def held_out_nearest_train_distance(self) -> float:
        """The same for real held-out images."""
        return self._nearest(self.held_out_rows)

    def features(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Principal components [B, 20] of flat images [B, 1024]."""
        return self.components.transform(rows)

    def _reference(self) -> npt.NDArray[np.float64]:
        return self.features(self.train_rows)

    def _accuracy(self, rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> float:
        return float(np.mean(self.classifier.predict(rows) == labels))

    def _nearest(self, rows: npt.NDArray[np.float64]) -> float:
        train = self.train_rows
        squares = np.square(rows).sum(axis=1)[:, None] + np.square(train).sum(axis=1)
        closest = (squares - 2 * rows @ train.T).min(axis=1).clip(0) / train.shape[1]
        return float(np.sqrt(closest).mean())
