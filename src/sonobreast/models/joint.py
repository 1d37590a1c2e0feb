"""One network that classifies and segments: a timm encoder, short-cuts to the classifier, a U-Net decoder.

After Yadav 2024, whose modified ResNet-101 has "added shortcut connections" for the stability of gradients and a second
task, segmentation. The paper gives no more than that. Ours: which short-cuts (every stage is pooled, projected and
added to what the classifier sees), the decoder (a U-Net of segmentation-models-pytorch on the same encoder), the loss
(cross-entropy, Dice and binary cross-entropy, weighted).

The encoder stays timm's own network with its own tensor names, so that weights arrive as they do for a classifier:
segmentation-models-pytorch's own encoders rename the tensors.
"""

from __future__ import annotations

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional

from sonobreast.config import Head, Segmentation
from sonobreast.models.heads import build_head
from sonobreast.models.zoo import Decoder


class AttentionGate(nn.Module):
    """Weigh a skip connection by what the coarser level says is worth a look.

    alpha = sigmoid(psi(relu(W_x x + W_g g))), out = alpha x (Oktay 2018, "Attention U-Net", equation 1).
    """

    def __init__(self, skip: int, gate: int) -> None:
        super().__init__()
        inner = max(8, skip // 2)
        self.of_skip = nn.Conv2d(skip, inner, 1, bias=False)
        self.of_gate = nn.Conv2d(gate, inner, 1)
        self.psi = nn.Conv2d(inner, 1, 1)

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        """Skip (B, S, H, W) and gate (B, G, h, w) to (B, S, H, W)."""
        coarse = functional.interpolate(self.of_gate(gate), skip.shape[2:], mode="bilinear", align_corners=False)
        out: Tensor = skip * torch.sigmoid(self.psi(functional.relu(self.of_skip(skip) + coarse)))
        return out


class JointHead(nn.Module):
    """Class and mask from the feature maps of an encoder.

    Parameters
    ----------
    features : int
        Length of the encoder's own pooled vector.
    stages : sequence of int
        Channels of its feature maps, from fine to coarse.
    classes : int
    head : Head
        The classifier on the sum of the short-cuts.
    settings : Segmentation
    decoder : {"unet", "attention"}
        ``attention`` puts an `AttentionGate` into each skip connection.
    """

    def __init__(
        self, features: int, stages: tuple[int, ...], classes: int, head: Head, settings: Segmentation, decoder: Decoder
    ) -> None:
        super().__init__()
        # Pooled values of different stages differ in size by orders: each vector is normalised before it is projected.
        self.shortcuts = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(n), nn.Linear(n, settings.shortcuts)) for n in (*stages, features)
        )
        self.classifier = build_head(settings.shortcuts, classes, head)
        blocks = min(len(settings.channels), len(stages))
        self.decoder = UnetDecoder((3, *stages), settings.channels[:blocks], n_blocks=blocks)
        self.mask = nn.Conv2d(settings.channels[blocks - 1], 1, 3, padding=1)
        self.gates = nn.ModuleList()
        if decoder == "attention":
            coarser = (stages[-1], *settings.channels)
            skips = tuple(reversed(stages[:-1]))[:blocks]
            self.gates.extend(AttentionGate(s, g) for s, g in zip(skips, coarser, strict=False))

    def classify(self, pooled: Tensor, maps: list[Tensor]) -> Tensor:
        """Logits (B, C) from the encoder's pooled vector (B, F) and its maps, each (B, C_i, H_i, W_i)."""
        vectors = [*(m.float().mean((2, 3)) for m in maps), pooled.float()]
        together = sum((s(v) for s, v in zip(self.shortcuts, vectors, strict=True)), start=torch.zeros(()))
        logits: Tensor = self.classifier(functional.relu(together))
        return logits

    def segment(self, images: Tensor, maps: list[Tensor]) -> Tensor:
        """Logits of the mask, (B, 1, H, W), at the size of the images (B, 3, H, W)."""
        finer = [*reversed(maps[:-1])]
        sizes = [*(m.shape[2:] for m in finer), images.shape[2:]]
        x = maps[-1]
        for i, block in enumerate(self.decoder.blocks):
            skip = finer[i] if i < len(finer) else None
            if skip is not None and i < len(self.gates):
                skip = self.gates[i](skip, x)
            x = block(x, *sizes[i], skip_connection=skip)
        logits: Tensor = self.mask(x).float()
        if logits.shape[2:] != images.shape[2:]:
            logits = functional.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
        return logits


def mask_loss(logits: Tensor, truth: Tensor, known: Tensor, settings: Segmentation) -> Tensor:
    """Weighted sum of 1 - Dice (over all pixels of the images together) and binary cross-entropy, for known masks.

    Parameters
    ----------
    logits : Tensor, (B, 1, H, W)
    truth : Tensor, float32, (B, 1, H, W)
        0 to 1; an augmented view has values between at the edge.
    known : Tensor, bool, (B,)
        Images whose mask is known; without any the loss is 0.
    settings : Segmentation

    References
    ----------
    Milletari 2016, "V-Net", 3DV (Dice loss).
    """
    if not bool(known.any()):
        return logits.sum() * 0.0
    given, wanted = logits[known], truth[known]
    loss = settings.cross_entropy * functional.binary_cross_entropy_with_logits(given, wanted)
    if settings.dice > 0:
        loss = loss + settings.dice * DiceLoss("binary", from_logits=True)(given, wanted)
    return loss
