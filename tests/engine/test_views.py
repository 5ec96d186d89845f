"""Views of a batch: moved, mirrored and mixed samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelpress.spec.distill import Augment
from workers.engine import views
from workers.engine.errors import Unsupported


def opened(seed: int = 0, **options) -> views.Views:
    return views.Views(Augment(**options), np.random.default_rng(seed))


def images(*shape: int) -> torch.Tensor:
    return torch.arange(float(np.prod(shape))).reshape(shape)


def test_images_move_by_whole_pixels_and_their_edge_fills():
    x = images(64, 1, 5, 6)
    (seen,) = opened(shift=2).take((x,))
    moves = set()
    for before, after in zip(x[:, 0], seen[:, 0], strict=True):
        padded = torch.nn.functional.pad(before[None], (2, 2, 2, 2), mode="replicate")[0]
        found = [
            (i, j)
            for i in range(5)
            for j in range(5)
            if torch.equal(padded[i : i + 5, j : j + 6], after)
        ]
        assert found
        moves.update(found)
    assert len(moves) > 15


def test_half_of_the_images_are_mirrored():
    x = images(200, 3, 4, 5)
    (seen,) = opened(flip=True).take((x,))
    mirrored = (seen == x.flip(3)).flatten(1).all(1)
    same = (seen == x).flatten(1).all(1)
    assert torch.equal(mirrored, ~same)
    assert 70 < mirrored.sum() < 130


def test_channels_may_come_last():
    x = images(50, 1, 6, 5)
    (first,) = opened(shift=1, flip=True).take((x,))
    (last,) = opened(shift=1, flip=True).take((x.movedim(1, 3),))
    assert torch.equal(last.movedim(3, 1), first)


def test_mixed_samples_have_the_loss_of_both_labels():
    view, x, labels = opened(mixup=1.0), images(8, 3), torch.arange(8)
    (seen,) = view.take((x,))
    mixed = view.mixed
    assert 0 < mixed.share < 1
    assert torch.allclose(seen, mixed.share * x + (1 - mixed.share) * x[mixed.partners])
    loss = view.labels(lambda given: given.float() @ torch.arange(8.0), labels)
    both = labels.float(), labels[mixed.partners].float()
    wanted = mixed.share * both[0] + (1 - mixed.share) * both[1]
    assert loss.item() == pytest.approx((wanted @ torch.arange(8.0)).item())


def test_what_is_no_image_is_not_moved_and_integers_are_not_mixed():
    with pytest.raises(Unsupported, match="shift and flip are for images"):
        opened(shift=1).take((images(4, 10),))
    with pytest.raises(Unsupported, match="mixup adds samples"):
        opened(mixup=0.2).take((torch.arange(4),))


def test_an_input_beside_the_image_stays():
    extra = images(4, 7)
    _, same = opened(shift=1).take((images(4, 1, 5, 5), extra))
    assert same is extra
