"""Learning-rate schedules over a known number of steps: (optimizer, total_steps, *, …) -> scheduler.

Also what becomes of the optimizer in a checkpoint when a training goes on from it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from captioning.errors import InputError


def warmup_cosine(
    optimizer: Optimizer, total_steps: int, *, warmup_share: float, final_share: float
) -> LambdaLR:
    """Rise linearly to the optimizer's rate, then fall along half a cosine (one cycle, Smith 2018).

    Args:
        optimizer: its learning rate is the peak.
        total_steps: of the whole training.
        warmup_share: part of the steps that rise, 0 to 1.
        final_share: of the peak, where the cosine ends, 0 to 1.

    Raises:
        InputError: a share outside 0 to 1.
    """
    for name, value in (("warmup_share", warmup_share), ("final_share", final_share)):
        if not 0 <= value <= 1:
            raise InputError(f"scheduler.{name} is {value}; it is a share from 0 to 1")
    warmup = max(1, round(total_steps * warmup_share))

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, total_steps - warmup))
        return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, share)


def step_decay(optimizer: Optimizer, total_steps: int, *, factor: float, times: int) -> LambdaLR:
    """Multiply the rate by `factor` at `times` evenly spaced moments of the training.

    Raises:
        InputError: a negative number of times, or a factor that is none above 0.
    """
    if times < 0 or not factor > 0:
        raise InputError(
            f"scheduler.times={times} and scheduler.factor={factor}: needed are numbers from 0, and above 0"
        )
    every = max(1, total_steps // (times + 1))
    return LambdaLR(optimizer, lambda step: factor ** min(times, step // every))


def apply_new_options(optimizer: Optimizer, schedules: Sequence[Any]) -> None:
    """Give an optimizer whose state was loaded the options that it was built with.

    The loaded state has the options of the run it comes from, and would hide a lower learning rate given now.

    Args:
        optimizer: of one or more groups without options of their own.
        schedules: of its learning rate; they continue at their step, towards or from the new rate.
    """
    peak = optimizer.defaults["lr"]
    for number, group in enumerate(optimizer.param_groups):
        old_peak = group.get("initial_lr", group["lr"])
        current = group["lr"]
        if peak != old_peak:  # else rounding would change it
            current = current * peak / old_peak if old_peak else peak
        group.update(optimizer.defaults, lr=current)
        if "initial_lr" in group:
            group["initial_lr"] = peak
        for schedule in schedules:
            schedule.base_lrs[number] = peak


def check_optimizer_states(
    states: Sequence[Mapping[str, Any]], parameters: Sequence[Tensor], path: str
) -> None:
    """Refuse the state of an optimizer that does not fit its parameters; fused kernels would read beyond it.

    Args:
        states: of a checkpoint's optimizers.
        parameters: of each of them.
        path: of the checkpoint, for messages.

    Raises:
        InputError: names the entry.
    """
    for key, entries in (item for state in states for item in state["state"].items()):
        if type(key) is not int or not 0 <= key < len(parameters) or not isinstance(entries, dict):
            raise InputError(f"{path} can't be resumed: its optimizer has a state of parameter {key!r:.40}")
        for name, value in entries.items():
            needed = torch.Size() if name == "step" else parameters[key].shape
            # Adafactor keeps sums over rows and columns; its kernels check for themselves.
            if isinstance(value, Tensor) and value.shape != needed and name not in ("row_var", "col_var"):
                raise InputError(
                    f"{path} can't be resumed: its optimizer's {name} has shape {tuple(value.shape)}, needed "
                    f"is {tuple(needed)}; give start_from= to begin a training with its weights"
                )
