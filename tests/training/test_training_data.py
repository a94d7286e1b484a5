"""What the student is shown: same, held-out or the teacher's own images."""

from __future__ import annotations

import pytest
import torch

import support
from cdmem.diffusion.sampling import NoiseSource
from cdmem.errors import InputError
from cdmem.images import to_uint8
from cdmem.seeds import first_sample
from cdmem.training.student import Student


class KeepIds(Student):
    def loss(self, batch, noise):
        self.ids = [*getattr(self, "ids", []), *batch.index.tolist()]
        self.shown = [*getattr(self, "shown", []), *batch.image]
        return super().loss(batch, noise)


@pytest.mark.parametrize("seen", ["same", "heldout", "teacher_samples"])
def test_ids_tell_where_the_images_come_from(seen):
    data = support.make_data(batch_size=8)
    module = support.fit(support.make_student(KeepIds, data=seen), 2, data)
    t = data.training_set
    if seen == "teacher_samples":
        expected = dict(zip(range(-1, -9, -1), module._teacher_images()[0]))
    else:
        expected = dict(enumerate(t.images)) if seen == "same" else dict(enumerate(t.held_out_images, start=8))
    assert set(module.ids) == set(expected)
    for number, image in zip(module.ids, module.shown):
        assert torch.equal(image, expected[number])


def test_a_pool_is_sampled_seed_by_seed():
    """More samples than are made at once; seeds apart from those of evaluations."""
    data = support.make_data()
    module = support.make_student(data="teacher_samples", teacher_sample_count=300, sampling_seed=3)
    support.fit(module, 1, data)
    pool, labels = module._teacher_images()
    expected = module.teacher_sampler()(range(first_sample(3) + 500_000, first_sample(3) + 500_300))
    assert torch.equal(pool, to_uint8(expected)) and not labels.any()


def test_a_pool_of_classes_carries_the_labels_of_its_seeds(tmp_path):
    data = support.make_data(balance=True, n=20)
    teacher = support.fit(support.make_teacher(conditional=True), 1, data)
    teacher.trainer.save_checkpoint(tmp_path / "teacher.ckpt")
    options = {"teacher": str(tmp_path / "teacher.ckpt"), "network": None}
    module = support.fit(support.make_student(data="teacher_samples", **options), 1, data)
    pool, labels = module._teacher_images()
    seeds = range(500_000, 500_020)
    assert torch.equal(labels, NoiseSource(seeds, module.shape).labels(10)) and len(labels.unique()) > 2
    assert torch.equal(pool, to_uint8(module.teacher_sampler()(seeds)))


def test_a_teacher_follows_its_student_to_a_device():
    module = support.make_student()
    training_set = support.make_data().training_set
    support.hand_over(module, training_set).prepare(training_set)
    module.to("meta").move_teacher()
    assert {b.device.type for b in module.teacher_denoiser.buffers()} == {"meta"}


def test_held_out_images_are_needed():
    with pytest.raises(InputError, match=r"^model\.data\.images="):
        support.fit(support.make_student(data="heldout"), 1, support.make_data(held_out=0))
