"""The families of source checkpoints, in the order in which their recognisers are tried."""

from __future__ import annotations

from sfss_ray.models.families.deeplab_v2_keys import caffe_deeplab_v2, torchvision_deeplab_v2
from sfss_ray.models.families.espnet_keys import espnet_checkpoint, espnet_v2_checkpoint
from sfss_ray.models.families.huggingface import huggingface_segformer
from sfss_ray.models.families.huggingface_networks import huggingface_network
from sfss_ray.models.families.mix_transformers import mmseg_mit
from sfss_ray.models.families.mmseg_resnet import mmseg_resnet_deeplab
from sfss_ray.models.families.recognised_file import RecognisedFile, Recogniser
from sfss_ray.models.families.torchvision_keys import torchvision_model

FAMILIES: tuple[tuple[str, Recogniser], ...] = (
    ("DeepLabV2 of AdaptSegNet, ADVENT, HCL, IAPC, CROTS", caffe_deeplab_v2),
    ("DeepLabV2 of FADA, DT-ST, TRSFUDA", torchvision_deeplab_v2),
    ("SegFormer of Hugging Face", huggingface_segformer),
    ("any segmentation network of Hugging Face with its config.json", huggingface_network),
    ("DeepLab of mmseg and DAFormer on ResNets", mmseg_resnet_deeplab),
    ("SegFormer of mmseg and NVlabs, DAFormer, HRDA, MIC, SePiCo", mmseg_mit),
    ("ESPNet", espnet_checkpoint),
    ("ESPNetv2 for segmentation, of EdgeNets", espnet_v2_checkpoint),
    ("torchvision DeepLabV3, FCN, LR-ASPP", torchvision_model),
)

__all__ = ["FAMILIES", "RecognisedFile", "Recogniser"]
