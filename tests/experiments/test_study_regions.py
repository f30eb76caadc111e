"""The regions of the studies: every source has the small SAM's embeddings."""

import numpy as np
import pytest

from sfss_ray.config import override
from sfss_ray.masks.bank.store import MaskStore
from sfss_ray.masks.regions import make_recipe


@pytest.fixture
def pair(tmp_path, experiment):
    return experiment("domain_pairs").streets(tmp_path, 2)


def test_masks_of_every_source_have_embeddings(pair, experiment):
    for regions in experiment("study_regions").REGIONS:
        store = MaskStore(pair.masks(regions))
        (image, _) = (file.image_id for file in pair.images)
        embeddings = store.embeddings(image)
        assert embeddings.shape == (store.id_map(image).max() + 1, 64)
        assert (np.abs(embeddings[1:]).sum(1) > 0).all()


def test_regions_are_embedded_as_the_small_sam_embeds_its_own_masks(pair, experiment):
    regions = experiment("study_regions")
    config = override(pair.config, {"masks.points_per_side": 4})
    find, recipe = regions.mask_finder("small_sam", config, pair.instances)
    file = pair.images[0]
    records = find(file, file.read())
    plain = [{k: v for k, v in record.items() if k != "embedding"} for record in records]
    embed, with_embeddings = regions._embedded(lambda *_: plain, {"source": "any"})
    assert with_embeddings == {"source": "any", "embeddings": True}
    again = embed(file, file.read())
    for one, other in zip(again, records, strict=True):
        np.testing.assert_allclose(one["embedding"], other["embedding"], atol=2e-3)
    assert (
        recipe
        == make_recipe(
            override(config, {"masks.regions": "small_sam", "masks.embeddings": True}).masks, None
        )[0].as_dict()
    )
