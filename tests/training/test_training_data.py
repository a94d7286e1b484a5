"""What the student is shown: same, held-out or the teacher's own images."""

from __future__ import annotations

import pytest
import torch

import support
from cdmem.errors import InputError
from cdmem.images import to_float
from cdmem.training.student import Student

# ---- what the student is shown --------------------------------------------------------------------------------------


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
    if seen == "same":
        assert set(module.ids) == set(range(8))
        expected = {i: t.images[i] for i in range(8)}
    elif seen == "heldout":
        assert set(module.ids) == set(range(8, 16))
        expected = {8 + i: t.held_out_images[i] for i in range(8)}
    else:
        assert set(module.ids) == set(range(-8, 0))
        pool, _ = module._teacher_images()
        expected = {-1 - i: pool[i] for i in range(8)}
    for number, image in zip(module.ids, module.shown):
        assert torch.equal(image, expected[number])


def test_teacher_samples_are_copies_when_the_teacher_memorised_everything():
    data = support.make_data()
    module = support.fit(support.make_student(data="teacher_samples", teacher_sample_count=20), 1, data)
    pool, _ = module._teacher_images()
    assert len(pool) == 20
    gap = torch.cdist(to_float(pool).flatten(1), to_float(data.training_set.images).flatten(1)).min(1).values
    # The sampler's grid ends at 0; what is left is rounding to 256 grey levels: half a level in 64 pixels.
    assert float(gap.max()) <= 8 * (0.5 / 127.5) * 1.01


def test_held_out_images_are_needed():
    with pytest.raises(InputError) as caught:
        support.fit(support.make_student(data="heldout"), 1, support.make_data(held_out=0))
    assert caught.value.key == "model.data.images"
