"""What torchvision's Faster R-CNN sees: the objects of a picture as regions, with boxes and confidences.

The choice of regions is that of Bottom-Up and Top-Down (Anderson et al. 2018, section 3.1 and the
authors' code): proposals keep their place (no box regression), every class suppresses its own overlaps, a box
is as good as the best class it survives in, and 10 to 100 boxes, or always 36, are kept.

Departures: the detector knows COCO's 80 classes, not Visual Genome's 1,600 with attributes; a region's
feature is what the box head makes of it (1024 numbers, the input of the class scores), not a mean of the
fifth block's 2048 channels; pictures are resized to one fixed size, without their aspect, so that batches
stack.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from captioning.errors import InputError
from captioning.features.extraction import Seen
from captioning.features.frozen import FrozenNetwork, smooth_pictures
from captioning.features.orders import order_of
from captioning.features.weights import build_published, is_file_name, load_state, read_state

CLASS_BIAS = "roi_heads.box_predictor.cls_score.bias"  # as long as the detector has classes


class RegionDetector(FrozenNetwork):
    """A picture transform and a frozen Faster R-CNN.

    Args:
        architecture: `fasterrcnn_resnet50_fpn_v2`, or another of torchvision's Faster R-CNNs.
        weights: a torchvision weight name (`COCO_V1`; downloaded once), the path of a state dict (of any
            number of classes), or `random`: seeded weights whose BatchNorm statistics are calibrated.
        image_size: height and width in pixels that every picture is resized to.
        min_regions: kept even where the detector is unsure; the whole picture stands in for missing
            proposals.
        max_regions: R. Equal to `min_regions` for a fixed number.
        score_threshold: confidence from which a box counts.
        nms_threshold: intersection over union above which a class suppresses the weaker box.
        num_proposals: boxes that are looked at; the `320` architecture proposes no more than 150.
        order: in which regions are stored: `confidence`, `area`, `left_to_right` or `random`.
        seed: of the random weights.

    Raises:
        InputError: unknown architecture or weights, numbers that contradict each other, or a file that is no
            state dict of this architecture.
    """

    has_boxes = True

    def __init__(
        self,
        *,
        architecture: str,
        weights: str,
        image_size: Sequence[int],
        min_regions: int,
        max_regions: int,
        score_threshold: float,
        nms_threshold: float,
        num_proposals: int,
        order: str = "confidence",
        seed: int = 0,
    ) -> None:
        super().__init__(architecture=architecture, weights=weights, image_size=image_size)
        if not 1 <= min_regions <= max_regions <= num_proposals:
            raise InputError(
                f"min_regions {min_regions}, max_regions {max_regions} and num_proposals {num_proposals} "
                "need 1 <= min_regions <= max_regions <= num_proposals; change features.extractor"
            )
        self.num_proposals, self._order = num_proposals, order_of(order)
        counts = {"min_regions": min_regions, "max_regions": max_regions}
        thresholds = {"score_threshold": score_threshold, "nms_threshold": nms_threshold}
        self.selection: dict[str, Any] = {**counts, **thresholds}
        self.provenance |= {**self.selection, "num_proposals": num_proposals, "order": order}
        self.network = _build(architecture, weights, seed)
        self.network.rpn.score_thresh = 0.0  # the MobileNets' 0.05 leaves some pictures without any proposal
        self.normalise_by(self.network.transform.image_mean, self.network.transform.image_std)
        # From smooth to fine: most box heads have no norms that would damp what a fine picture stirs up.
        self.freeze(weights, seed, smooth_pictures((3, 9, 27, 81), self.image_size, seed))

    def shape(self) -> tuple[int, int]:
        """Largest number of regions, and numbers that the box head gives of each: (R, D)."""
        return self.selection["max_regions"], self.network.roi_heads.box_predictor.cls_score.in_features

    def forward(self, images: Tensor) -> Seen:
        """See pictures as objects, in their order.

        Args:
            images: (B, 3, H, W) bytes, as `transform` gives them.
        """
        network, exact = self.network, torch.autocast(images.device.type, enabled=False)
        pixels = self.pixels(images)
        maps = network.backbone(pixels)
        sizes = [self.image_size] * len(images)
        with exact:  # bfloat16 would round a box's corners to 4 pixels
            maps = {name: level.float() for name, level in maps.items()}
            proposals, _ = network.rpn(ImageList(pixels, sizes), maps)
            proposals = [self._enough(boxes) for boxes in proposals]
        vectors = network.roi_heads.box_head(network.roi_heads.box_roi_pool(maps, proposals, sizes)).float()
        with exact:
            logits = network.roi_heads.box_predictor.cls_score(vectors)  # (all boxes, classes)
        probabilities = logits.softmax(-1)[:, 1:]  # class 0 is the background
        counts = [len(boxes) for boxes in proposals]
        parts = zip(proposals, vectors.split(counts), probabilities.split(counts), strict=True)
        return self._pad([self._keep(*part) for part in parts])

    def _enough(self, boxes: Tensor) -> Tensor:
        """The most object-like proposals, which come first, and the whole picture for each one missing."""
        height, width = self.image_size
        missing = max(0, self.selection["min_regions"] - len(boxes))
        whole = boxes.new_tensor([0, 0, width, height]).expand(missing, 4)
        return torch.cat([boxes[: self.num_proposals], whole])

    def _keep(self, boxes: Tensor, vectors: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, boxes and scores of one picture's regions."""
        chosen, confidence = select_regions(boxes, probabilities, **self.selection)
        height, width = self.image_size
        fractions = boxes[chosen] / boxes.new_tensor([width, height, width, height])
        fractions = fractions.clamp(0, 1)
        order = self._order(fractions, confidence)
        return vectors[chosen][order], fractions[order], confidence[order]

    def _pad(self, kept: list[tuple[Tensor, Tensor, Tensor]]) -> Seen:
        """Stack pictures of different numbers of regions; each ends in zeros."""
        parts = [[pad_rows(part, self.selection["max_regions"]) for part in picture] for picture in kept]
        features, boxes, scores = map(torch.stack, zip(*parts, strict=True))  # (B, R, D), (B, R, 4), (B, R)
        counts = torch.tensor([len(scores) for _, _, scores in kept], device=features.device)
        return Seen(features, counts, boxes, scores)


def select_regions(
    boxes: Tensor,
    probabilities: Tensor,
    *,
    min_regions: int,
    max_regions: int,
    score_threshold: float,
    nms_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Choose the boxes that become regions, the surest first.

    A box's confidence is its best probability over those classes in which no surer box suppresses it; 0 if it
    is suppressed in all of them. Equally sure boxes keep their order.

    Args:
        boxes: (N, 4) x1 y1 x2 y2.
        probabilities: (N, C) of the classes, without the background.
        min_regions: how many at least, if there are as many boxes.
        max_regions: how many at most.
        score_threshold: confidence from which a box is taken beyond the minimum.
        nms_threshold: intersection over union above which a class suppresses the weaker box.

    Returns:
        positions (K,) in `boxes`, and confidences (K,).
    """
    num_boxes, num_classes = probabilities.shape
    scores = probabilities.T.reshape(-1)  # (C · N,)
    classes = torch.arange(num_classes, device=boxes.device).repeat_interleave(num_boxes)
    survivors = batched_nms(boxes.repeat(num_classes, 1), scores, classes, nms_threshold)
    survived = torch.zeros_like(scores).index_copy(0, survivors, scores[survivors])
    confidence, order = survived.view(num_classes, num_boxes).amax(0).sort(descending=True, stable=True)
    count = int((confidence >= score_threshold).sum().clamp(min_regions, max_regions))
    return order[:count], confidence[:count]


def pad_rows(values: Tensor, length: int) -> Tensor:
    """Append rows of zeros: (K, …) to (length, …)."""
    padded = values.new_zeros(length, *values.shape[1:])
    padded[: len(values)] = values
    return padded


def _build(architecture: str, weights: str, seed: int) -> FasterRCNN:
    known = torchvision.models.list_models(torchvision.models.detection, include="fasterrcnn*")
    if architecture not in known:
        raise InputError(f"torchvision has no detector {architecture!r}; there are {', '.join(known)}")
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = torchvision.models.get_model(architecture, weights=None, weights_backbone=None)
            for module in network.backbone.body.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        return network
    if is_file_name(weights):
        return _load(architecture, Path(weights))
    return build_published(architecture, weights)


def _load(architecture: str, path: Path) -> FasterRCNN:
    state = read_state(path)
    options = {"num_classes": len(state[CLASS_BIAS])} if CLASS_BIAS in state else {}
    network = torchvision.models.get_model(architecture, weights=None, weights_backbone=None, **options)
    needs = f"{architecture} needs"
    load_state(network, state, source=path, needs=needs, remedy="choose other weights")
    published = torchvision.models.get_model_weights(architecture)
    if architecture == "fasterrcnn_resnet50_fpn" and path.name == Path(published.COCO_V1.url).name:
        for module in network.modules():  # as torchvision does with this one file
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return network
