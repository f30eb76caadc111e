"""A variant of SAM whose encoder returns more outputs for the decoder, as that of SAM-HQ does."""

import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder


class ManyFeatures(ImageEncoderViT):
    """Returns an embedding and intermediate features, like the encoder of SAM-HQ."""

    def forward(self, x):
        embedding = super().forward(x)
        return embedding, [self.patch_embed(x)]


class FeatureDecoder(MaskDecoder):
    def forward(self, image_embeddings, interm_embeddings, hq_token_only, **inputs):
        assert hq_token_only is False
        masks, quality = super().forward(image_embeddings, **inputs)
        return masks + interm_embeddings[0].mean(), quality


class FeaturePredictor(SamPredictor):
    """A predictor that passes the features of ManyFeatures to a FeatureDecoder."""

    def set_torch_image(self, transformed_image, original_image_size):
        super().set_torch_image(transformed_image, original_image_size)
        self.features, self.interm_features = self.features

    @torch.no_grad()
    def predict_torch(self, coords, labels, multimask_output=True, return_logits=False):
        sparse, dense = self.model.prompt_encoder((coords, labels), None, None)
        low, quality = self.model.mask_decoder(
            image_embeddings=self.features,
            image_pe=self.model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
            hq_token_only=False,
            interm_embeddings=self.interm_features,
        )
        masks = self.model.postprocess_masks(low, self.input_size, self.original_size)
        return masks, quality, low
