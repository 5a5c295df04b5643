"""Objects that torchvision's Faster R-CNN detects as regions, with boxes and confidences.

Regions are selected as in Bottom-Up and Top-Down (Anderson et al. 2018, section 3.1 and the authors' code):
proposals keep their place (no box regression), every class suppresses its own overlaps, a box is as good as
the best class it survives in, and 10 to 100 boxes, or always 36, are kept.

Departures from the paper: the detector knows COCO's 80 classes, not Visual Genome's 1,600 with attributes;
a region's feature is the output of the box head (1024 numbers, the input of the class scores), not the mean
of the fifth block's 2048 channels; images are resized to one fixed size without keeping their aspect ratio,
so that batches stack.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import batched_nms

from captioning.errors import InputError
from captioning.features.frozen import FrozenExtractor, calibration_images
from captioning.features.orders import order_named
from captioning.features.region_features import RegionFeatures
from captioning.features.weights import build_published, load_state, read_state
from captioning.files import is_file_name, weights_name

CLASS_BIAS = "roi_heads.box_predictor.cls_score.bias"  # its length is the number of classes


class RegionDetector(FrozenExtractor):
    """A frozen Faster R-CNN with its image transform.

    Args:
        architecture: `fasterrcnn_resnet50_fpn_v2`, or another of torchvision's Faster R-CNNs.
        weights: a torchvision weight name (`COCO_V1`; downloaded once), the path of a state dict (of any
            number of classes), or `random`: seeded weights with calibrated BatchNorm statistics.
        image_size: height and width in pixels that every image is resized to.
        min_regions: kept even where the detector is unsure; the whole image stands in for missing proposals.
        max_regions: R. Equal to `min_regions` for a fixed number.
        score_threshold: lowest confidence of the regions beyond the minimum.
        nms_threshold: intersection over union above which a class suppresses the weaker box.
        num_proposals: boxes that are scored; the `320` architecture proposes no more than 150.
        order: in which regions are stored: `confidence`, `area`, `left_to_right` or `random`.
        seed: of the random weights.
        state: the tensors of `weights`, where a portable file brings them; nothing else is then read.

    Raises:
        InputError: unknown architecture or weights, numbers that contradict each other, or a file that is
            no state dict of this architecture.
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
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        selection: dict[str, Any] = {
            "min_regions": min_regions,
            "max_regions": max_regions,
            "score_threshold": score_threshold,
            "nms_threshold": nms_threshold,
        }
        super().__init__(
            architecture=architecture,
            weights=weights,
            image_size=image_size,
            **selection,
            num_proposals=num_proposals,
            order=order,
            seed=seed,
        )
        if not 1 <= min_regions <= max_regions <= num_proposals:
            raise InputError(
                f"min_regions {min_regions}, max_regions {max_regions} and num_proposals {num_proposals} "
                "must satisfy 1 <= min_regions <= max_regions <= num_proposals; change features.extractor"
            )
        self.num_proposals, self._selection, self._order = num_proposals, selection, order_named(order)
        self.network = _build(architecture, weights, seed, state)
        self.network.rpn.score_thresh = 0.0  # the MobileNets' 0.05 leaves some images without any proposal
        self.set_normalisation(self.network.transform.image_mean, self.network.transform.image_std)
        # From smooth to fine: most box heads have no norms to damp the activations of a fine-grained image.
        if state is None:
            self.freeze(weights, calibration_images((3, 9, 27, 81), self.image_size, seed))
        else:
            self.restore(state)
        # Known without the trial run of `measure`, which takes seconds here.
        self.num_regions = max_regions
        self.feature_dim = self.network.roi_heads.box_predictor.cls_score.in_features

    def forward(self, images: Tensor) -> RegionFeatures:
        """Detect the objects of each image, in the chosen order.

        Args:
            images: (B, 3, h, w) bytes, as `transform` gives them.
        """
        network, full_precision = self.network, torch.autocast(images.device.type, enabled=False)
        pixels = self.normalise(images)
        maps = network.backbone(pixels)  # one (B, C, h, w) per level of the feature pyramid
        sizes = [self.image_size] * len(images)
        with full_precision:  # bfloat16 would round a box's corners to 4 pixels
            maps = {name: level.float() for name, level in maps.items()}
            proposals, _ = network.rpn(ImageList(pixels, sizes), maps)
            proposals = [self._fill_up(boxes) for boxes in proposals]  # B × (N, 4)
        pooled = network.roi_heads.box_roi_pool(maps, proposals, sizes)  # (all boxes, C, 7, 7)
        vectors = network.roi_heads.box_head(pooled).float()  # (all boxes, D)
        with full_precision:
            logits = network.roi_heads.box_predictor.cls_score(vectors)  # (all boxes, classes)
        probabilities = logits.softmax(-1)[:, 1:]  # class 0 is the background
        counts = [len(boxes) for boxes in proposals]
        parts = zip(proposals, vectors.split(counts), probabilities.split(counts), strict=True)
        return self._stack([self._select(*part) for part in parts])

    def _fill_up(self, boxes: Tensor) -> Tensor:
        """Keep the most object-like proposals; the whole image stands in for those missing to the minimum."""
        height, width = self.image_size
        missing = max(0, self._selection["min_regions"] - len(boxes))
        whole = boxes.new_tensor([0, 0, width, height]).expand(missing, 4)
        return torch.cat([boxes[: self.num_proposals], whole])  # the network returns the best proposals first

    def _select(self, boxes: Tensor, vectors: Tensor, probabilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return features (K, D), boxes (K, 4) as fractions and scores (K,) of one image's regions."""
        chosen, confidence = select_regions(boxes, probabilities, **self._selection)
        height, width = self.image_size
        fractions = boxes[chosen] / boxes.new_tensor([width, height, width, height])
        fractions = fractions.clamp(0, 1)
        order = self._order(fractions, confidence)
        return vectors[chosen][order], fractions[order], confidence[order]

    def _stack(self, regions: list[tuple[Tensor, Tensor, Tensor]]) -> RegionFeatures:
        """Stack images of different numbers of regions, padded with zeros."""
        parts = [[pad_rows(part, self._selection["max_regions"]) for part in image] for image in regions]
        features, boxes, scores = map(torch.stack, zip(*parts, strict=True))  # (B, R, D), (B, R, 4), (B, R)
        counts = torch.tensor([len(scores) for _, _, scores in regions], device=features.device)
        return RegionFeatures(features, counts, boxes, scores)


def select_regions(
    boxes: Tensor,
    probabilities: Tensor,
    *,
    min_regions: int,
    max_regions: int,
    score_threshold: float,
    nms_threshold: float,
) -> tuple[Tensor, Tensor]:
    """Choose the boxes that become regions, the most confident first.

    A box's confidence is its best probability over those classes in which no better box suppresses it; 0 if
    it is suppressed in all of them. Boxes of equal confidence keep their order.

    Args:
        boxes: (N, 4) x1 y1 x2 y2.
        probabilities: (N, C) of the classes, without the background.
        min_regions: lower limit, if there are as many boxes.
        max_regions: upper limit.
        score_threshold: lowest confidence of the regions beyond the minimum.
        nms_threshold: intersection over union above which a class suppresses the weaker box.

    Returns:
        positions (K,) in `boxes`, and confidences (K,).
    """
    num_boxes, num_classes = probabilities.shape
    # One copy of every box per class, so that a single call suppresses overlaps within each class.
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


def _build(architecture: str, weights: str, seed: int, state: Mapping[str, Tensor] | None) -> FasterRCNN:
    known = torchvision.models.list_models(torchvision.models.detection, include="fasterrcnn*")
    if architecture not in known:
        raise InputError(f"torchvision has no detector {architecture!r}; choose one of {', '.join(known)}")
    if state is not None:
        return _shaped_like(state, f"network.{CLASS_BIAS}", architecture, weights_name(weights))
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
    network = _shaped_like(state, CLASS_BIAS, architecture, path.name)
    needs = f"{architecture} needs"
    load_state(network, state, source=path, needs=needs, remedy="choose other weights")
    return network


def _shaped_like(state: Mapping[str, Tensor], class_bias: str, architecture: str, weights: str) -> FasterRCNN:
    """Build a network of as many classes as the state dict has, which the caller loads."""
    options = {"num_classes": len(state[class_bias])} if class_bias in state else {}
    network = torchvision.models.get_model(architecture, weights=None, weights_backbone=None, **options)
    published = torchvision.models.get_model_weights(architecture).COCO_V1
    if architecture == "fasterrcnn_resnet50_fpn" and weights in (published.name, Path(published.url).name):
        # As torchvision does with these weights: they were trained when frozen norms had no epsilon.
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
    return network
