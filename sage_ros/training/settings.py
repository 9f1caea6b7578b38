"""How a student is trained: what decides the result, apart from the demonstrations and the network's sizes."""

from __future__ import annotations

from dataclasses import dataclass

from sage_ros.core.options import check, option

APART = frozenset({"seed", "labelled_only"})  # what a recipe has nothing to say of


@dataclass(frozen=True)
class CloningConfig:
    """How a student is trained. Noise is in standard deviations of what it is added to.

    Pose noise and forgotten commands are what keeps a student that sees its own last command from only copying it;
    command noise teaches it to come back to the demonstrated path; blanked tokens, to bear a distrusted patch.
    """

    steps: int = option(2000, "gradient steps at most", low=1, high=10**7)
    batch_size: int = option(64, "rows per step", low=1, high=65536)
    lr: float = option(1e-3, "highest learning rate", low=1e-8, high=1.0)
    weight_decay: float = option(0.1, "AdamW's weight decay", low=0.0, high=10.0)
    warmup: int = option(100, "steps until the highest learning rate", low=1, high=10**6)
    ema: float = option(0.995, "share of the averaged weights kept per step", low=0.0, high=0.999999)
    evaluate_every: int = option(100, "steps between two looks at the validation episodes", low=1, high=10**6)
    patience: int = option(10, "looks without improvement after which training stops", low=1, high=10**6)
    pose_noise: float = option(0.1, "noise on the joint state", low=0.0, high=10.0)
    command_blur: float = option(0.0, "noise on what the student hears of the last command", low=0.0, high=10.0)
    motion_noise: float = option(0.1, "noise on the motion features", low=0.0, high=10.0)
    command_noise: float = option(0.1, "how far the last command is off the path, of the offsets' deviation",
                                  low=0.0, high=10.0)  # fmt: skip
    command_dropout: float = option(0.05, "share of rows on which the last command is not known", low=0.0, high=0.99)
    word_dropout: float = option(0.0, "share of the task's words that are blank", low=0.0, high=0.99)
    dropout: float = option(0.0, "share of the network's thoughts that are blank", low=0.0, high=0.9)
    token_noise: float = option(0.1, "noise on the tokens", low=0.0, high=10.0)
    token_dropout: float = option(0.1, "share of tokens that are blank", low=0.0, high=0.99)
    ahead_weight: float = option(0.3, "weight of the rows beyond the chunk in the loss", low=0.0, high=10.0)
    bit_weight: float = option(4.0, "weight of a gripper's bit in the loss", low=0.0, high=1e3)
    huber: float = option(0.3, "offset error above which the loss is linear", low=1e-3, high=1e3)
    labelled_only: bool = option(False, "whether to learn only from rows that a teacher has labelled")
    seed: int = option(0, "seed of weights, batches and noise", low=0, high=2**31)

    def __post_init__(self) -> None:
        check(self)
