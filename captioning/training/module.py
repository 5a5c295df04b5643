"""The LightningModule: thin, because models, objectives and decoders do the work."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from captioning.data.dataset import Batch
from captioning.decoding import Decoded
from captioning.errors import InputError
from captioning.metrics import score_all
from captioning.metrics.pointing import Pointing, pool_pointing
from captioning.models.base import CaptionModel
from captioning.objectives import CrossEntropy, Objective
from captioning.training.attention_pointing import point
from captioning.training.attention_statistics import (
    AttentionStatistics,
    attention_statistics,
    describe_collapse,
    pool,
)
from captioning.training.schedules import apply_new_options
from captioning.vocabulary import Vocabulary

log = logging.getLogger(__name__)


class CaptioningModule(LightningModule):
    """Trains a model with an objective; after each epoch captions the validation images and scores them.

    Logs `train/*` (what the objective logs), `val/nll` (nats a word), `val/perplexity`, and BLEU-4 and
    CIDEr-D of the validation images times 100, as `val/bleu_4` and `val/cider_d`. Of
    attention it logs entropy and change (see `attention_statistics`) and, where the data know places, the
    share of words whose attention lies on what they name, `val/attention_pointing` (see `metrics.pointing`).

    Args:
        model: any caption model.
        objective: what training minimises. Validation always measures plain cross-entropy, so that runs
            compare.
        optimizer: called with the parameters.
        scheduler: called with the optimizer and the number of steps, stepped after each batch; None for none.
        vocabulary: the words.
        decoding: a decoder, called with (model, features, mask).
        metadata: what a checkpoint says of itself, see `captioning.checkpoint`.
    """

    def __init__(
        self,
        *,
        model: CaptionModel,
        objective: Objective,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        scheduler: Callable[[Optimizer, int], LRScheduler] | None,
        vocabulary: Vocabulary,
        decoding: Callable[..., Decoded],
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.objective, self.decoding = model, objective, decoding
        self.vocabulary, self.metadata = vocabulary, dict(metadata)
        self._optimizer, self._scheduler = optimizer, scheduler
        self._validation_nll = CrossEntropy()
        self._candidates: dict[str, str] = {}
        self._references: dict[str, tuple[str, ...]] = {}
        self._attention: list[AttentionStatistics] = []
        self._pointing: list[Pointing] = []
        self._collapsed = False
        self._sums: dict[str, Tensor] = {}  # of this epoch: what is logged times the number of words
        self._num_words = 0  # that the sums are over
        self._random_state: dict[str, Any] | None = None  # before a validation that is under way
        self.history: list[dict[str, float]] = []
        self.has_begun = False  # everything is built and restored, and has trained on a batch

    def on_fit_start(self) -> None:
        """Give the objective the training references and the words."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            references = {record.image_id: record.captions for record in data.split("train")}
            self.objective.prepare(references, self.vocabulary.words)

    def on_train_epoch_start(self) -> None:
        """Tell the objective which epoch begins."""
        self.objective.begin_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log what the objective computes and hand its loss to the optimizer.

        Raises:
            InputError: the loss is not finite.
        """
        terms = self.objective(self.model, batch)
        num_words = int(terms.num_words)
        for name, value in {"loss": terms.loss.detach(), **terms.logged}.items():
            self.log(f"train/{name}_step", value, on_step=True, on_epoch=False, prog_bar=name == "loss")
            # Lightning's own means over an epoch are not in its checkpoints, which may be written inside one.
            total = self._sums.get(name, torch.zeros(()))
            self._sums[name] = total.to(value.device) + value.float() * num_words
        self._num_words += num_words
        if not torch.isfinite(terms.loss):
            raise InputError(
                f"the loss is {terms.loss.item()} at step {self.global_step}; lower optimizer.lr, set "
                "trainer.gradient_clip_val=1 or trainer.precision=32, and go on with resume=<run folder>"
            )
        return terms.loss

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure cross-entropy over captions (first loader), caption images (second loader)."""
        if dataloader_idx == 0:
            terms = self._validation_nll(self.model, batch)
            self.log(
                "val/nll",
                terms.logged["nll"],
                batch_size=int(terms.num_words),
                add_dataloader_idx=False,
                prog_bar=True,
            )
            return
        decoded = self.decode(batch)
        for image_id, tokens in zip(batch.image_ids, decoded.tokens.tolist(), strict=True):
            self._candidates[image_id] = self.vocabulary.decode(tokens)
        if decoded.attention is not None:
            self._attention.append(attention_statistics(decoded.attention, batch.mask))
            data = getattr(self.trainer, "datamodule", None)
            self._pointing.append(point(decoded, batch, data))
        self._references.update(zip(batch.image_ids, batch.references, strict=True))

    def on_validation_epoch_end(self) -> None:
        """Score this epoch's captions."""
        nll = self.trainer.callback_metrics.get("val/nll")
        if nll is not None:
            self.log("val/perplexity", math.exp(min(float(nll), 50.0)))
        if self._candidates and not self.trainer.sanity_checking:
            scores = score_all(("bleu", "cider_d"), self._candidates, self._references)
            self.log("val/bleu_4", 100 * scores["bleu_4"].corpus)
            self.log("val/cider_d", 100 * scores["cider_d"].corpus, prog_bar=True)
            self._log_attention()
        if not self.trainer.sanity_checking:
            self._record_history()
        self._candidates, self._references, self._attention, self._pointing = {}, {}, [], []

    def _record_history(self) -> None:
        """Add this epoch's validation to the history that a checkpoint carries."""
        metrics = {
            name.removeprefix("val/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val/") and math.isfinite(value)
        }
        self.history.append({"epoch": self.current_epoch, **metrics})

    def _log_attention(self) -> None:
        """Log the spread and movement of attention, and warn when attention collapses."""
        if not self._attention:
            return
        statistics = pool(self._attention)
        self.log("val/attention_entropy", statistics.entropy)
        self.log("val/attention_change", statistics.change)
        if (pointing := pool_pointing(self._pointing)).words:
            self.log("val/attention_pointing", pointing.score)
        message = describe_collapse(statistics)
        if message and not self._collapsed:
            log.warning(
                "attention has collapsed: %s. Captions then come from the mean region; look at the pictures, "
                "and try another optimizer.lr or other features=",
                message,
            )
        self._collapsed = bool(message)

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch's words, and one line about the epoch."""
        means = {f"train/{name}_epoch": total / self._num_words for name, total in self._sums.items()}
        for name, mean in means.items():
            self.log(name, mean, prog_bar=name == "train/loss_epoch")
        self._sums, self._num_words = {}, 0
        metrics = {**self.trainer.callback_metrics, **means}
        names = ("train/loss_epoch", "val/nll", "val/perplexity", "val/bleu_4", "val/cider_d")
        parts = (
            f"{name.removesuffix('_epoch')} {float(metrics[name]):.3f}" for name in names if name in metrics
        )
        log.info("epoch %d: %s", self.current_epoch, ", ".join(parts))

    @torch.no_grad()
    def decode(self, batch: Batch) -> Decoded:
        """Caption the images of a batch."""
        return self.decoding(self.model, batch.features, batch.mask)

    def trained_parameters(self) -> list[Tensor]:
        """Return what the optimizer is given, in its order."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def configure_optimizers(self) -> Any:
        """Build the optimizer, and the schedule over all steps.

        Raises:
            InputError: they refuse their options.
        """
        # This builds the loader, whose errors are no matter of the optimizer.
        steps = int(self.trainer.estimated_stepping_batches) if self._scheduler else 0
        try:
            optimizer = self._optimizer(self.trained_parameters())
            if self._scheduler is None:
                return optimizer
            schedule = self._scheduler(optimizer, steps)
        except (TypeError, ValueError) as error:
            raise InputError(f"optimizer= and scheduler= can't be built as given: {error}") from error
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Let the options given now win over those that a resumed optimizer remembers."""
        if self.trainer.fit_loop.restarted_mid_epoch:  # Lightning then leaves out `on_train_epoch_start`
            self.objective.begin_epoch(self.current_epoch)
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        for optimizer in self.trainer.optimizers:
            apply_new_options(optimizer, schedules)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients, also those of a fused optimizer.

        Raises:
            InputError: a fused optimizer under float16.
        """
        # Lightning refuses fused optimizers with every mixed precision. Its reason is the scaling of the
        # loss, which float16 has and bfloat16 has not.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if gradient_clip_val and not scaled and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
            return
        if scaled and getattr(optimizer, "defaults", {}).get("fused"):
            raise InputError(
                "trainer.precision=16-mixed can't clip the gradients of a fused optimizer; set "
                "optimizer.fused=false, or trainer.precision=bf16-mixed"
            )
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.has_begun = True

    def on_validation_start(self) -> None:
        """Keep the random state: training that is resumed inside a validation begins it anew."""
        self._random_state = _random_state()

    def on_validation_end(self) -> None:
        self._random_state = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what makes the checkpoint self-sufficient, and what resuming needs, also inside an epoch."""
        checkpoint["captioning"] = {
            **self.metadata,
            **(self._random_state or _random_state()),
            "objective_state": self.objective.state_dict(),
            "history": list(self.history),
            "logged_sums": dict(self._sums),
            "logged_words": self._num_words,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the random state, so that dropout draws what it would have drawn without the break."""
        metadata = checkpoint["captioning"]
        if self.global_rank == 0:  # other processes would draw what the first one draws
            torch.set_rng_state(metadata["random_state"].cpu())
            cuda_states = metadata["cuda_random_state"]
            if len(cuda_states) == torch.cuda.device_count() > 0:
                torch.cuda.set_rng_state_all([state.cpu() for state in cuda_states])
        self.history = list(metadata["history"])
        self.objective.load_state_dict(metadata["objective_state"])
        self._sums = dict(metadata["logged_sums"])
        self._num_words = metadata["logged_words"]


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random_state": torch.get_rng_state(), "cuda_random_state": cuda}
