"""A predictor for segment_anything's generator that calls a model of transformers."""

import warnings
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from random_sam import random_sam
from segment_anything import SamAutomaticMaskGenerator

from sfss_ray.masks.sam.transformers_model import TransformersModel


class FamilyPredictor:
    """Points are scaled by width and height, as sam2's predictor does; SAM keeps the image's shape."""

    def __init__(self, model):
        wrapped = TransformersModel(model)
        self.hf, self.processor, self.pads = model, wrapped.processor, wrapped.kind == "hf_sam"
        self.side, self.device = wrapped.input_side, torch.device("cpu")
        self.model = SimpleNamespace(mask_threshold=0.0)
        self.transform = SimpleNamespace(apply_coords=self._scale)

    def _scale(self, points, size):
        height, width = size
        new = (self.side, self.side)
        if self.pads:
            ratio = self.side / max(height, width)
            new = (int(height * ratio + 0.5), int(width * ratio + 0.5))
        return points * np.array([[new[1] / width, new[0] / height]])

    def set_image(self, image):
        self.inputs = self.processor(images=Image.fromarray(image), return_tensors="pt")
        self.features = self.hf.get_image_embeddings(self.inputs["pixel_values"])

    def reset_image(self):
        self.features = None

    def predict_torch(self, points, labels, multimask_output, return_logits):
        outputs = self.hf(
            image_embeddings=self.features, input_points=points[None], input_labels=labels[None]
        )
        sizes = {"original_sizes": self.inputs["original_sizes"]}
        if self.pads:
            sizes["reshaped_input_sizes"] = self.inputs["reshaped_input_sizes"]
        masks = self.processor.post_process_masks(outputs.pred_masks, binarize=False, **sizes)
        return masks[0], outputs.iou_scores[0], outputs.pred_masks[0]


def stock_records(model, image, **settings):
    """Return the records of segment_anything's generator with a model of transformers."""
    generator = SamAutomaticMaskGenerator(random_sam(), **settings)
    generator.predictor = FamilyPredictor(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about how the stock generator uses it
        return generator.generate(image)
