"""Patterns of networks for images."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.patterns.pattern import CLASSES, Excited, Pattern, Pooled, Shuffle, block


class Row(Pooled):
    """Layers in a row: a block of `width`, what is between, a block that reads `after`."""

    def __init__(self, *between: nn.Module, width: int = 16, after: int = 16) -> None:
        super().__init__(16)
        self.body = nn.Sequential(block(3, width), *between, block(after, 16))

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)


class Residual(Pooled):
    """Sums with a shortcut, the second with a projection (ResNet)."""

    def __init__(self) -> None:
        super().__init__(24)
        self.stem, self.one, self.two = block(3, 16), block(16, 16), block(16, 24)
        self.shortcut = nn.Conv2d(16, 24, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.one(x)
        return self.two(x) + self.shortcut(x)


class PaddedShortcut(Pooled):
    """A shortcut that is filled up with channels of zeros (ResNet A)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.one, self.last = block(3, 8), block(8, 16), block(16, 16)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(self.one(x) + functional.pad(x, (0, 0, 0, 0, 0, 8)))


class Joined(Pooled):
    """Branches of different width side by side (Inception)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.one, self.two, self.last = block(3, 8), block(3, 12, 1), block(20, 16)

    def features(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([self.one(x), self.two(x)], 1))


class JoinedWithItself(Pooled):
    """The same channels twice, the second time negated (CReLU)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.one, self.last = nn.Conv2d(3, 8, 3), block(16, 16)

    def features(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.last(functional.relu(torch.cat([x, -x], 1)))


class Dense(Pooled):
    """Every layer reads all layers before it (DenseNet)."""

    def __init__(self) -> None:
        super().__init__(32)
        self.stem = block(3, 8)
        self.layers = nn.ModuleList(block(8 * n, 8) for n in (1, 2, 3))

    def features(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for layer in self.layers:
            seen.append(layer(torch.cat(seen, 1)))
        return torch.cat(seen, 1)


class Cascade(Pooled):
    """Quarters that each go through a layer with the one before (Res2Net)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.last = block(3, 16), block(16, 16)
        self.layers = nn.ModuleList(block(4, 4) for _ in range(3))

    def features(self, x: Tensor) -> Tensor:
        first, *others = self.stem(x).chunk(4, dim=1)
        done = [first]
        for part, layer in zip(others, self.layers, strict=True):
            done.append(layer(part + done[-1]))
        return self.last(torch.cat(done, 1))


class HalfComputed(Pooled):
    """One half passes, the other is computed, both are joined (CSPNet)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.one, self.last = block(3, 16), block(8, 8), block(16, 16)

    def features(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        return self.last(torch.cat([left, self.one(right)], 1))


class Sliced(Pooled):
    """A few channels are computed, the rest is left as it is (FasterNet)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.part, self.last = block(3, 16), block(5, 5), block(16, 16)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(torch.cat([self.part(x[:, :5]), x[:, 5:]], 1))


class Flattened(nn.Module):
    """A layer that reads every pixel of every channel (VGG)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.hidden = block(3, 8), nn.Linear(8 * 64, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(self.body(x), 2)
        return self.head(functional.relu(self.hidden(x.flatten(1))))


class HalfShuffled(HalfComputed):
    """One half passes, the other is computed, both are mixed (ShuffleNet v2)."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffle = Shuffle(2)

    def features(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        return self.last(self.shuffle(torch.cat([left, self.one(right)], 1)))


class Inverted(Pooled):
    """Wide inside, one filter for each channel, weighed (MobileNet v3)."""

    def __init__(self) -> None:
        super().__init__(12)
        self.stem = block(3, 12)
        self.inside = nn.Sequential(block(12, 32, 1), block(32, 32, 3, 32), Excited(32))
        self.narrow = nn.Sequential(nn.Conv2d(32, 12, 1, bias=False), nn.BatchNorm2d(12))

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.narrow(self.inside(x))


class Gated(Pooled):
    """One half of the channels gates the other (GLU)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.wide, self.last = block(3, 8), nn.Conv2d(8, 24, 1), block(12, 16)

    def features(self, x: Tensor) -> Tensor:
        value, gate = self.wide(self.stem(x)).chunk(2, dim=1)
        return self.last(value * gate.sigmoid())


class Selective(Pooled):
    """Two branches, weighed against each other channel by channel (SKNet)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.one, self.two, self.last = block(3, 16), block(3, 16, 5), block(16, 16)
        self.down, self.up = nn.Linear(16, 8), nn.Linear(8, 32)

    def features(self, x: Tensor) -> Tensor:
        branches = torch.stack([self.one(x), self.two(x)], 1)
        pooled = functional.relu(self.down(branches.sum(1).mean((2, 3))))
        weights = self.up(pooled).view(-1, 2, 16).softmax(1)
        return self.last((branches * weights[..., None, None]).sum(1))


class Maxout(Pooled):
    """The larger one of each two channels."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.last = nn.Conv2d(3, 24, 3), block(12, 16)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        return self.last(x.view(n, c // 2, 2, h, w).amax(2))


class Selected(Pooled):
    """Channels in an order that is stored."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.last = block(3, 16), block(16, 16)
        order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
        self.register_buffer("order", order)

    def features(self, x: Tensor) -> Tensor:
        return self.last(self.stem(x)[:, self.order])


class Frozen(Pooled):
    """Normalization by numbers that are stored (detection backbones)."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.last = nn.Conv2d(3, 16, 3, bias=False), block(16, 16)
        self.register_buffer("scale", torch.ones(16))
        self.register_buffer("shift", torch.zeros(16))

    def features(self, x: Tensor) -> Tensor:
        y = self.stem(x) * self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)
        return self.last(functional.relu(y))


class UpAndDown(Pooled):
    """Down, up again, joined with what was there (U-Net)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.low, self.last = block(3, 12), block(12, 20), block(32, 16)
        self.up = nn.Upsample(scale_factor=2.0)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.last(torch.cat([x, self.up(self.low(functional.max_pool2d(x, 2)))], 1))


class Pyramid(Pooled):
    """Levels of equal width, each with the coarser one added (FPN)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.fine, self.coarse = block(3, 12), block(12, 24)
        self.one, self.two = nn.Conv2d(12, 16, 1), nn.Conv2d(24, 16, 1)
        self.last, self.up = block(16, 16), nn.Upsample(scale_factor=2.0)

    def features(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        coarse = self.coarse(functional.max_pool2d(fine, 2))
        return self.last(self.one(fine) + self.up(self.two(coarse)))


class Context(Pooled):
    """Dilated branches beside the mean of the image, spread out again (ASPP)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.near = block(3, 12), nn.Conv2d(12, 8, 3, padding=1)
        self.far = nn.Conv2d(12, 8, 3, padding=2, dilation=2)
        self.whole, self.last = nn.Conv2d(12, 8, 1), block(24, 16, 1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand(-1, -1, 16, 16)
        return self.last(torch.cat([self.near(x), self.far(x), whole], 1))


class Shared(Pooled):
    """One convolution is applied twice (RetinaNet's heads)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.twice = block(3, 16), nn.Conv2d(16, 16, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return functional.relu(self.twice(functional.relu(self.twice(x))))


class Kernels(Pooled):
    """Kernels are parameters of the network itself."""

    def __init__(self) -> None:
        super().__init__(16)
        self.one = nn.Parameter(torch.randn(24, 3, 3, 3) * 0.2)
        self.two = nn.Parameter(torch.randn(16, 24, 3, 3) * 0.1)

    def features(self, x: Tensor) -> Tensor:
        x = functional.relu(functional.conv2d(x, self.one))
        return functional.relu(functional.conv2d(x, self.two))


class ChannelsLast(Pooled):
    """Channels last between two layers, scaled by a parameter (ConvNeXt)."""

    def __init__(self) -> None:
        super().__init__(16)
        self.stem, self.spatial = block(3, 16), nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm, self.up, self.down = nn.LayerNorm(16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.ones(16))

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(functional.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class Dimensions(nn.Module):
    """Convolutions along one or three axes."""

    def __init__(self, convolution: type[nn.Module], normalization: type[nn.Module]) -> None:
        super().__init__()
        self.one, self.two = convolution(3, 16, 3), convolution(16, 24, 3)
        self.norm, self.head = normalization(16), nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(functional.relu(self.norm(self.one(x))))
        return self.head(functional.relu(x).flatten(2).mean(2))


PATTERNS: Mapping[str, Pattern] = {
    "layers in a row": Pattern(Row),
    "residual sum": Pattern(Residual),
    "padded shortcut": Pattern(PaddedShortcut),
    "concatenation": Pattern(Joined),
    "concatenation with itself": Pattern(JoinedWithItself),
    "dense connections": Pattern(Dense),
    "cascade of quarters": Pattern(Cascade),
    "one half computed": Pattern(HalfComputed),
    "uneven slices": Pattern(Sliced),
    "flattened image": Pattern(Flattened),
    "grouped convolution": Pattern(lambda: Row(block(16, 24, 3, 4), after=24)),
    "depthwise convolution": Pattern(lambda: Row(block(16, 16, 3, 16))),
    "depthwise with multiplier": Pattern(lambda: Row(block(16, 32, 3, 16), after=32)),
    "transposed convolution": Pattern(lambda: Row(nn.ConvTranspose2d(16, 12, 2, 2), after=12)),
    "grouped transposed": Pattern(lambda: Row(nn.ConvTranspose2d(16, 16, 2, 2, groups=4))),
    "channel shuffle": Pattern(lambda: Row(block(16, 16, 3, 4), Shuffle(4))),
    "shuffle between groups": Pattern(
        lambda: Row(block(16, 16, 3, 4), Shuffle(4), block(16, 16, 3, 4))
    ),
    "one half computed, shuffled": Pattern(HalfShuffled),
    "pixel shuffle": Pattern(lambda: Row(nn.PixelShuffle(2), width=48, after=12)),
    "pixel unshuffle": Pattern(lambda: Row(nn.PixelUnshuffle(2), width=4)),
    "GroupNorm": Pattern(lambda: Row(nn.GroupNorm(4, 16))),
    "InstanceNorm": Pattern(lambda: Row(nn.InstanceNorm2d(16, affine=True))),
    "PReLU": Pattern(lambda: Row(nn.PReLU(16))),
    "squeeze and excite": Pattern(lambda: Row(Excited(16))),
    "inverted bottleneck": Pattern(Inverted),
    "gated halves": Pattern(Gated),
    "selected branches": Pattern(Selective),
    "maxout": Pattern(Maxout),
    "stored channel order": Pattern(Selected),
    "frozen normalization": Pattern(Frozen),
    "up and down": Pattern(UpAndDown),
    "feature pyramid": Pattern(Pyramid),
    "dilated context": Pattern(Context),
    "shared convolution": Pattern(Shared),
    "functional convolution": Pattern(Kernels),
    "channels last": Pattern(ChannelsLast),
    "one dimension": Pattern(lambda: Dimensions(nn.Conv1d, nn.BatchNorm1d), shape=(3, 24)),
    "three dimensions": Pattern(lambda: Dimensions(nn.Conv3d, nn.BatchNorm3d), shape=(3, 8, 8, 8)),
}
