"""Networks of convolutions and patches over images and volumes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from models.family import Family, batches, family, trained
from torchcc import Method


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm around a shortcut, as in torchvision's ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1 or inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.relu(out)


class ResNet(nn.Module):
    """A ResNet with two stages."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.layer1 = ResidualBlock(8, 8, 1)
        self.layer2 = ResidualBlock(8, 16, 2)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(16, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.stem(image)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


@family
def resnet() -> Family:
    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 3, 32, 32),), dynamic={"image": {0: "batch"}})

    return Family(trained(ResNet(10)), {"forward": call}, batches(2, 1, 5))


class InvertedResidual(nn.Module):
    """Expand, filter each channel by itself, squeeze and excite, project."""

    def __init__(self, width: int, expansion: int, dilation: int) -> None:
        super().__init__()
        hidden = width * expansion
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6())
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.squeeze = nn.Conv2d(hidden, 4, 1)
        self.excite = nn.Conv2d(4, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.hardswish(self.norm(self.depthwise(self.expand(x))))
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return x + self.project(y * scale)


@family
def mobilenet() -> Family:
    class MobileNet(nn.Module):
        """A depthwise network that takes images of any size, in channels-last layout."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, 2, 1)
            self.blocks = nn.Sequential(InvertedResidual(8, 3, 1), InvertedResidual(8, 2, 2))
            self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 6))

        def forward(self, image: Tensor) -> Tensor:
            x = self.blocks(self.stem(image.to(memory_format=torch.channels_last)))
            return self.head(x.mean((2, 3)))

    def call(batch: int, height: int, width: int) -> Method:
        return Method((torch.randn(batch, 3, height, width),), dynamic={"image": {0: "batch", 2: "height", 3: "width"}})

    sizes = [
        {"batch": 2, "height": 24, "width": 32},
        {"batch": 5, "height": 17, "width": 40},
        {"batch": 3, "height": 32, "width": 16},
    ]
    # torch.export takes channels-last strides for those of a batch of 2 or more.
    ranges = {"batch": (2, None), "height": (8, None), "width": (8, None)}
    return Family(trained(MobileNet()), {"forward": call}, sizes, ranges=ranges)


@family
def unet() -> Family:
    class UNet(nn.Module):
        """Down and up again, with the activations of the way down beside those of the way up."""

        def __init__(self) -> None:
            super().__init__()
            self.down1 = nn.Conv2d(1, 6, 3, padding=1)
            self.down2 = nn.Conv2d(6, 12, 3, padding=1)
            self.middle = nn.Conv2d(12, 12, 3, padding=1)
            self.up = nn.ConvTranspose2d(12, 12, 2, stride=2)
            self.merge2 = nn.Conv2d(24, 6, 3, padding=1)
            self.merge1 = nn.Conv2d(12, 2, 1)

        def forward(self, image: Tensor) -> Tensor:
            one = F.relu(self.down1(image))
            two = F.relu(self.down2(F.max_pool2d(one, 2)))
            x = F.relu(self.middle(F.avg_pool2d(two, 2)))
            x = F.relu(self.merge2(torch.cat([self.up(x), two], 1)))
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            return self.merge1(torch.cat([x, one], 1))

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 1, 16, 24),), dynamic={"image": {0: "batch"}})

    return Family(trained(UNet()), {"forward": call}, batches(2, 3, 1))


@family
def convolutions_3d() -> Family:
    net = nn.Sequential(
        nn.Conv3d(2, 6, 3, padding=1),
        nn.BatchNorm3d(6),
        nn.LeakyReLU(0.1),
        nn.MaxPool3d(2),
        nn.Conv3d(6, 4, (1, 3, 3), stride=(1, 2, 2)),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )
    return Family(trained(net), {"forward": lambda: Method((torch.randn(2, 2, 6, 12, 12),))})


@family
def transposed_convolutions() -> Family:
    class Generator(nn.Module):
        """A picture from noise, as the generator of a GAN makes it."""

        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Linear(10, 16 * 4 * 4)
            self.up1 = nn.ConvTranspose2d(16, 8, 4, stride=2, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.up2 = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1)
            self.shuffle = nn.PixelShuffle(2)

        def forward(self, noise: Tensor) -> Tensor:
            x = self.project(noise).view(-1, 16, 4, 4)
            x = F.leaky_relu(self.norm(self.up1(x)), 0.2)
            return torch.tanh(self.shuffle(self.up2(x)))

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 10),), dynamic={"noise": {0: "batch"}})

    return Family(trained(Generator()), {"forward": call}, batches(3, 1, 4))


@family
def vision_transformer() -> Family:
    class VisionTransformer(nn.Module):
        """Patches of an image as tokens, and one more for the class."""

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 8, stride=8)
            self.token = nn.Parameter(torch.zeros(1, 1, 16))
            self.positions = nn.Parameter(torch.zeros(1, 17, 16))
            self.norm = nn.LayerNorm(16)
            self.qkv = nn.Linear(16, 48)
            self.proj = nn.Linear(16, 16)
            self.head = nn.Linear(16, 10)

        def forward(self, image: Tensor) -> Tensor:
            x = self.patches(image).flatten(2).transpose(1, 2)
            batch = x.shape[0]
            x = torch.cat([self.token.expand(batch, -1, -1), x], dim=1) + self.positions
            q, k, v = self.qkv(self.norm(x)).reshape(batch, -1, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
            x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, -1, 16))
            return self.head(x[:, 0])

    def call(batch: int) -> Method:
        return Method((torch.randn(batch, 3, 32, 32),), dynamic={"image": {0: "batch"}})

    return Family(trained(VisionTransformer()), {"forward": call}, batches(2, 1, 6))
