"""Short adaptations of networks of transformers, from the folder to the student's predictions."""

from __future__ import annotations

import pytest
import torch
from train_samples import CLASSES, adaptation_task, small_config, write_dataset

pytest.importorskip("transformers", reason="pip install 'sfss-ray[transformers]'")

import transformers_models as models

from sfss_ray import load_model, save_model
from sfss_ray.models.source import open_source
from sfss_ray.train.adaptation import adapt_student
from sfss_ray.train.run_state import LocalRun, load_state

BUILDERS = [*models.SEMANTIC, *models.UNIVERSAL]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("foreign"), count=2)


@pytest.mark.parametrize("builder", BUILDERS)
def test_five_steps_give_a_usable_student(builder, root, tmp_path):
    models.make(builder).save_pretrained(tmp_path / "m")
    source = open_source(tmp_path / "m").placed(tmp_path)
    config = small_config(num_steps=5, evaluate_every=5, batch_norm="adapt")
    adapt_student(adaptation_task(root, source.path, config), LocalRun(tmp_path / "run"))
    state = load_state(tmp_path / "run")["student"]
    prefix = "segmenter."
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    model = source.load()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model.network.load_state_dict(state)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    moved = {n for n, w in model.named_parameters() if not torch.equal(w, before[n])}
    assert moved <= trained
    assert len(moved) > 0.9 * len(trained)
    student = load_model(save_model(tmp_path / "student.pt", model))
    images = torch.rand(2, 3, 48, 80)
    with torch.no_grad():
        logits = student(images)
    assert logits.shape == (2, len(CLASSES), 48, 80)
    assert logits.isfinite().all()
    assert student.title.endswith("Segmentation")
