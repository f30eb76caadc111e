"""The bank keeps the newest prototypes of each class, in the order of writing."""

import numpy as np
import torch

from sfss_ray.method.prototype_bank import PrototypeBank


def numbered(start: int, count: int) -> torch.Tensor:
    """Return (count, 2) vectors that contain the order of writing."""
    return torch.arange(start, start + count).float()[:, None].repeat(1, 2)


def write(bank: PrototypeBank, label: int, start: int, count: int) -> None:
    classes = np.full(count, label)
    bank.write(numbered(start, count), classes, np.arange(start, start + count))


def stored(bank: PrototypeBank, label: int) -> list[int]:
    vectors, classes, images = bank.contents()
    chosen = vectors[classes == label]
    assert chosen[:, 0].long().tolist() == images[classes == label].tolist()
    return sorted(chosen[:, 0].long().tolist())


def test_empty_slots_are_never_returned():
    bank = PrototypeBank(3, 4, 2)
    assert [len(part) for part in bank.contents()] == [0, 0, 0]
    write(bank, 1, 0, 3)
    vectors, classes, images = bank.contents()
    assert vectors.shape == (3, 2)
    assert classes.tolist() == [1, 1, 1]
    assert images.tolist() == [0, 1, 2]


def test_class_zero_is_stored():
    bank = PrototypeBank(3, 4, 2)
    write(bank, 0, 5, 2)
    assert stored(bank, 0) == [5, 6]
    assert bank.written.tolist() == [2, 0, 0]


def test_pointer_advances_by_what_was_written_and_the_oldest_go_first():
    bank = PrototypeBank(2, 4, 2)
    write(bank, 1, 0, 3)
    assert bank.written.tolist() == [0, 3]
    write(bank, 1, 3, 3)
    assert bank.written.tolist() == [0, 6]
    assert stored(bank, 1) == [2, 3, 4, 5]
    assert bank.images[1].tolist() == [4, 5, 2, 3]
    write(bank, 1, 6, 1)
    assert stored(bank, 1) == [3, 4, 5, 6]


def test_classes_in_one_write_do_not_disturb_each_other():
    bank = PrototypeBank(3, 2, 2)
    bank.write(numbered(0, 5), np.array([2, 0, 2, 0, 2]), np.arange(5))
    assert stored(bank, 0) == [1, 3]
    assert stored(bank, 1) == []
    assert stored(bank, 2) == [2, 4]


def test_more_than_size_in_one_write_keeps_the_newest():
    singles, batch = PrototypeBank(2, 4, 2), PrototypeBank(2, 4, 2)
    write(batch, 1, 0, 11)
    for start in range(11):
        write(singles, 1, start, 1)
    assert stored(batch, 1) == [7, 8, 9, 10]
    assert batch.written.tolist() == [0, 11]
    assert torch.equal(batch.images, singles.images)  # the ring is where single writes leave it
    write(batch, 1, 11, 1)
    assert stored(batch, 1) == [8, 9, 10, 11]


def test_size_zero_and_empty_writes_are_fine():
    switched_off = PrototypeBank(2, 0, 2)
    write(switched_off, 0, 0, 3)
    assert len(switched_off.contents()[0]) == 0
    bank = PrototypeBank(2, 3, 2)
    write(bank, 0, 0, 0)
    assert bank.written.tolist() == [0, 0]


def test_state_is_restored_bit_for_bit(tmp_path):
    bank, fresh = PrototypeBank(3, 4, 2), PrototypeBank(3, 4, 2)
    bank.write(torch.rand(9, 2) / 3, np.arange(9) * 7 % 3, np.arange(9))
    torch.save(bank.state_dict(), tmp_path / "bank.pt")
    fresh.load_state_dict(torch.load(tmp_path / "bank.pt", weights_only=True))
    for name, value in bank.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    for written in (bank, fresh):
        write(written, 1, 20, 3)
    assert torch.equal(bank.vectors, fresh.vectors)


def test_a_loaded_bank_does_not_share_memory_with_its_state():
    bank, fresh = PrototypeBank(2, 3, 2), PrototypeBank(2, 3, 2)
    state = bank.state_dict()
    fresh.load_state_dict(state)
    write(fresh, 0, 0, 1)
    assert bank.written.tolist() == [0, 0]
