"""The LightningModule: thin, because models, objectives and decoders do the work."""

import logging
import math
import random
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
from captioning.metrics import PENN_TREEBANK, ScoredTokens, score_all
from captioning.metrics.pointing import pool_pointing
from captioning.models.base import CaptionModel
from captioning.objectives import CrossEntropy, Objective
from captioning.objectives.base import Terms
from captioning.processes import gather
from captioning.training.attention_pointing import point
from captioning.training.attention_statistics import (
    attention_statistics,
    describe_collapse,
    pool,
)
from captioning.training.schedules import apply_new_options
from captioning.training.validation import Captions, Loss, Validation
from captioning.vocabulary import Vocabulary, printable

log = logging.getLogger(__name__)


class CaptioningModule(LightningModule):
    """Trains a model with an objective; after each epoch captions the validation images and scores them.

    Logs `train/*` (what the objective logs), `val/nll` (nats per word), `val/perplexity`, and BLEU-4 and
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
        tokens: what BLEU and CIDEr-D count.
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
        tokens: ScoredTokens = PENN_TREEBANK,
        metadata: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model, self.objective, self.decoding = model, objective, decoding
        self.vocabulary, self.tokens, self.metadata = vocabulary, tokens, dict(metadata)
        self._optimizer, self._scheduler = optimizer, scheduler
        self._validation_nll = CrossEntropy()
        self._validation = Validation()
        self._collapsed = False
        self._sums: dict[str, Tensor] = {}  # of this epoch: what is logged times the number of words
        self._num_words = 0  # that the sums are over
        self._random_state: dict[str, Any] | None = None  # before a validation that is under way
        self.history: list[dict[str, float]] = []
        self.scored_captions: list[tuple[str, str, float]] = []  # of the last validation, with CIDEr-D
        self.has_begun = False  # everything is built and restored, and has trained on a batch

    def setup(self, stage: str) -> None:
        """Let each process draw random numbers of its own, the same ones for the same seed."""
        if self.global_rank > 0:
            torch.manual_seed(random.Random(f"{torch.initial_seed()} {self.global_rank}").getrandbits(63))

    def on_fit_start(self) -> None:
        """Give the objective the training references and the words."""
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            references = {record.image_id: record.captions for record in data.split("train")}
            self.objective.prepare(references, self.vocabulary)
        if not self.tokens.is_english:
            log.info("val/bleu_4 and val/cider_d are over %s", self.tokens)

    def on_train_epoch_start(self) -> None:
        """Tell the objective which epoch begins."""
        self.objective.begin_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Log what the objective computes and hand its loss to the optimizer.

        Raises:
            InputError: the loss is not finite.
        """
        terms = self.objective(self.model, batch)
        means, num_words = self._over_processes(terms)
        for name, value in means.items():
            self.log(f"train/{name}_step", value, on_step=True, on_epoch=False, prog_bar=name == "loss")
            # Lightning's own means over an epoch are not in its checkpoints, which may be written inside one.
            total = self._sums.get(name, torch.zeros(()))
            self._sums[name] = total.to(value.device) + value * num_words
        self._num_words += num_words
        if not torch.isfinite(means["loss"]):
            refuse_damaged_features(batch)
            raise InputError(
                f"the loss is {means['loss'].item()} at step {self.global_step}; lower optimizer.lr, set "
                "trainer.gradient_clip_val=1 or trainer.precision=32, and go on with resume=<run folder>"
            )
        return terms.loss

    def _over_processes(self, terms: Terms) -> tuple[dict[str, Tensor], int]:
        """Return what is logged, as means over the words of all processes, and the number of these words."""
        values = {"loss": terms.loss.detach(), **terms.logged}
        means = {name: value.float() for name, value in values.items()}
        if self.trainer.world_size == 1:
            return means, int(terms.num_words)
        num_words = terms.num_words.to(terms.loss.device).float()
        sums = torch.stack([*(mean.to(num_words.device) * num_words for mean in means.values()), num_words])
        sums = self.trainer.strategy.reduce(sums, reduce_op="sum")  # all in one message
        return dict(zip(means, sums[:-1] / sums[-1], strict=True)), int(sums[-1])

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure cross-entropy over captions (first loader), caption images (second loader)."""
        loaders: Any = self.trainer.val_dataloaders
        number = loaders[dataloader_idx].batch_sampler.numbers[batch_idx]
        if dataloader_idx == 0:
            terms = self._validation_nll(self.model, batch)
            self._validation.losses[number] = Loss(terms.logged["nll"], int(terms.num_words))
            return
        decoded = self.decode(batch)
        texts = [self.vocabulary.decode(tokens) for tokens in decoded.tokens.tolist()]
        attention = None
        if decoded.attention is not None:
            attention = attention_statistics(decoded.attention, batch.mask)
        self._validation.captions[number] = Captions(
            dict(zip(batch.image_ids, texts, strict=True)),
            dict(zip(batch.image_ids, batch.references, strict=True)),
            attention,
            point(decoded, batch, getattr(self.trainer, "datamodule", None)),
        )

    def on_validation_epoch_end(self) -> None:
        """Score this epoch's captions, those of all processes."""
        found, self._validation = self._validation.gathered(), Validation()
        if self.trainer.sanity_checking:
            return
        if found.losses:
            self.log("val/nll", found.nll, prog_bar=True)
            self.log("val/perplexity", math.exp(min(found.nll, 50.0)))
        if found.captions:
            scores = score_all(("bleu", "cider_d"), found.candidates, found.references, tokens=self.tokens)
            self.log("val/bleu_4", 100 * scores["bleu_4"].corpus)
            self.log("val/cider_d", 100 * scores["cider_d"].corpus, prog_bar=True)
            captions, values = found.candidates.items(), scores["cider_d"].per_image
            self.scored_captions = [(*pair, value) for pair, value in zip(captions, values, strict=True)]
            self._log_attention(found)
            if len(found.candidates) == 1 and not self.history:
                log.warning(
                    "there is one validation image, on which CIDEr-D is always 0; the epoch with the lowest "
                    "val/nll counts as the best"
                )
        self._record_history()

    def _record_history(self) -> None:
        """Add this epoch's validation to the history that a checkpoint carries."""
        metrics = {
            name.removeprefix("val/"): float(value)
            for name, value in self.trainer.callback_metrics.items()
            if name.startswith("val/") and math.isfinite(value)
        }
        self.history.append({"epoch": self.current_epoch, **metrics})

    def _log_attention(self, found: Validation) -> None:
        """Log the spread and movement of attention, and warn when attention collapses."""
        if not found.attention:
            return
        statistics = pool(found.attention)
        self.log("val/attention_entropy", statistics.entropy)
        self.log("val/attention_change", statistics.change)
        if getattr(getattr(self.trainer, "datamodule", None), "places", None) is not None:
            # NaN where no word could point: else the trainer goes on showing the value of an epoch before.
            self.log("val/attention_pointing", pool_pointing(found.pointing).score)
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
        """Log the norm of the gradients and clip them, also those of a fused optimizer.

        Raises:
            InputError: a fused optimizer under float16.
        """
        # Lightning refuses fused optimizers with every mixed precision. Its reason is the scaling of the
        # loss, which float16 has and bfloat16 has not.
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if scaled and getattr(optimizer, "defaults", {}).get("fused"):
            raise InputError(
                "trainer.precision=16-mixed can't clip the gradients of a fused optimizer; set "
                "optimizer.fused=false, or trainer.precision=bf16-mixed"
            )
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])  # type: ignore[misc]
        self.log("train/grad_norm", norm)  # before it is clipped
        if gradient_clip_val and not scaled and gradient_clip_algorithm in (None, "norm"):
            torch.nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, norm)
        else:
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
        state, *others = gather(
            {**(self._random_state or _random_state()), "objective_state": self.objective.state_dict()}
        )
        checkpoint["captioning"] = {
            **self.metadata,
            **state,
            "other_processes": others,
            "history": list(self.history),
            "logged_sums": dict(self._sums),
            "logged_words": self._num_words,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the random state, so that dropout draws what it would have drawn without the break.

        Raises:
            InputError: another number of processes, under a schedule of the learning rate.
        """
        metadata = checkpoint["captioning"]
        states = [metadata, *metadata.get("other_processes", [])]
        before, now = len(states), self.trainer.world_size
        if before != now and self._scheduler is not None:
            raise InputError(
                f"resume= was trained by {before} process(es) and this run has {now}: its scheduler counts "
                f"steps, of which an epoch then has others; start {before}, or give start_from= to begin "
                "another training with its weights and words"
            )
        if self.global_rank < before:  # further processes keep the random numbers of their seed
            torch.set_rng_state(states[self.global_rank]["random_state"].cpu())
            cuda_states = states[self.global_rank]["cuda_random_state"]
            if len(cuda_states) == torch.cuda.device_count() > 0:
                torch.cuda.set_rng_state_all([state.cpu() for state in cuda_states])
        self.history = list(metadata["history"])
        self.objective.load_state_dict(states[min(self.global_rank, before - 1)]["objective_state"])
        self._sums = dict(metadata["logged_sums"])
        self._num_words = metadata["logged_words"]


def refuse_damaged_features(batch: Batch) -> None:
    """Refuse features with NaN or Inf, which come from the feature file and not from the training.

    Raises:
        InputError: names the first such image.
    """
    finite = torch.isfinite(batch.features).flatten(1).all(1)  # (B,)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        damaged = batch.image_ids[row if batch.image_rows is None else batch.image_rows.tolist().index(row)]
        raise InputError(
            f"the features of the image {printable(damaged)} hold NaN or Inf; make them again with "
            "captioning extract … repair=true; without data.check=false such a row is found when it is read"
        )


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"random_state": torch.get_rng_state(), "cuda_random_state": cuda}
