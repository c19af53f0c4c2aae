"""Judges clips of moving digits: is each the digit asked for, are all distributed like real ones?

The classifier does not know where the digit is: in each frame its ink is moved to the middle, and
the frames of a clip are averaged. A digit that changes its shape from frame to frame averages to a
blur and is not recognised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from optimize.measure.frechet import PrincipalComponents, frechet_with_interval
from optimize.measure.quality import Interval
from optimize.recipes.zoo.digits_data import DigitsData
from optimize.recipes.zoo.moving_digits_data import FRAME_SIZE, clips_of

if TYPE_CHECKING:
    from sklearn.svm import SVC

COMPONENT_COUNT = 20
MOTIONS = 2
"""Clips per train digit that the judge learns from."""


@dataclass(frozen=True)
class MovingDigitsJudge:
    """A classifier and a Frechet reference, both made from the train split only.

    Attributes:
        classifier: a support-vector classifier of averaged frames.
        components: the features of the Frechet distance, of whole clips.
        reference: [B, 20], features of train clips.
        held_out: [360, 1, 8, 16, 16], clips of digits that no model and no judge was trained on.
        held_out_labels: [360], int64.
    """

    classifier: SVC
    components: PrincipalComponents
    reference: npt.NDArray[np.float64]
    held_out: torch.Tensor
    held_out_labels: torch.Tensor

    @classmethod
    def fit(cls, data: DigitsData) -> MovingDigitsJudge:
        """Trains on clips of the train split; takes a few seconds.

        Raises:
            ModuleNotFoundError: scikit-learn is not installed.
        """
        from sklearn.svm import SVC

        clips = torch.cat([clips_of(data.train, seed) for seed in range(MOTIONS)])
        labels = data.train.labels.repeat(MOTIONS).numpy()
        rows = flat_clips(clips)
        # Those of one clip per digit: twice as many take three times as long and hardly differ.
        components = PrincipalComponents.fit(rows[: len(data.train)], COMPONENT_COUNT)
        return cls(
            classifier=SVC(C=10.0, gamma="scale").fit(averaged_digits(clips), labels),
            components=components,
            reference=components.transform(rows),
            held_out=clips_of(data.held_out, MOTIONS),
            held_out_labels=data.held_out.labels,
        )

    def accuracy(self, clips: torch.Tensor, labels: torch.Tensor) -> float:
        """Share of clips recognised as their label, in [0, 1].

        Args:
            clips: [B, 1, F, H, W], in [-1, 1].
            labels: [B], int64, in [0, 9].
        """
        found = self.classifier.predict(averaged_digits(clips))
        return float(np.mean(found == labels.numpy()))

    def held_out_accuracy(self) -> float:
        """Accuracy on real held-out clips: the most that generated ones can be asked for."""
        return self.accuracy(self.held_out, self.held_out_labels)

    def frechet_interval(self, clips: torch.Tensor) -> Interval:
        """Frechet distance of whole clips to train clips, with a bootstrap interval."""
        features = self.components.transform(flat_clips(clips))
        return frechet_with_interval(features, self.reference)


def averaged_digits(clips: torch.Tensor) -> npt.NDArray[np.float64]:
    """Each clip as one picture: its frames, ink in the middle, averaged; rows [B, 256]."""
    batch, _, frames = clips.shape[:3]
    ink = ((clips.float().transpose(1, 2).flatten(0, 1) + 1) / 2).clamp(0, 1)  # [B * F, 1, H, W]
    place = (torch.arange(FRAME_SIZE) + 0.5) * (2 / FRAME_SIZE) - 1
    total = ink.sum((1, 2, 3)).clamp(min=1e-6)
    x = (ink.sum((1, 2)) * place).sum(1) / total
    y = (ink.sum((1, 3)) * place).sum(1) / total
    matrices = torch.eye(2, 3).repeat(len(ink), 1, 1)
    matrices[:, 0, 2], matrices[:, 1, 2] = x, y
    places = F.affine_grid(matrices, list(ink.shape), align_corners=False)
    moved = F.grid_sample(ink, places, align_corners=False)
    rows: npt.NDArray[np.float64] = moved.reshape(batch, frames, -1).mean(1).double().numpy()
    return rows


def flat_clips(clips: torch.Tensor) -> npt.NDArray[np.float64]:
    """Clips [B, 1, F, H, W] as feature rows, float64."""
    rows: npt.NDArray[np.float64] = clips.detach().flatten(1).double().numpy()
    return rows
