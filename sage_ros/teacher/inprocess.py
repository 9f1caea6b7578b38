"""GR00T in this process, where its package is installed: N1.5, and N1.6 or later."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sage_ros.teacher.modality import TeacherError, from_objects
from sage_ros.teacher.teachers import Gr00t

_INSTALL = (
    "install NVIDIA's Isaac-GR00T into this environment (a GPU with 16 GB or more), or run its inference server "
    "elsewhere and label with --teacher server"
)


def load_gr00t(
    model: str,
    embodiment: str,
    data_config: str = "",
    device: str = "cuda",
    denoising_steps: int | None = None,
) -> Gr00t:
    """GR00T's policy of a checkpoint ``model`` (folder or hub name). ``data_config`` and ``denoising_steps`` are for
    N1.5, whose checkpoints do not say what they take.

    Raises TeacherError where there is no gr00t package, or one of another API.
    """
    if find_spec("gr00t") is None:
        raise TeacherError(f"the package gr00t is not installed: {_INSTALL}")
    if _there("gr00t.policy.gr00t_policy"):
        return _load_n16(model, embodiment, device)
    if _there("gr00t.model.policy"):
        return _load_n15(model, embodiment, data_config, device, denoising_steps)
    raise TeacherError("the gr00t package has neither gr00t.policy.gr00t_policy (N1.6 or later) nor gr00t.model.policy "
                       f"(N1.5): {_INSTALL}")  # fmt: skip


def _load_n16(model: str, embodiment: str, device: str) -> Gr00t:
    policy = import_module("gr00t.policy.gr00t_policy").Gr00tPolicy(
        embodiment_tag=embodiment, model_path=model, device=device
    )

    def ask(observation: dict[str, Any]) -> Mapping[str, Any]:
        action, _ = policy.get_action(observation)
        return action

    interface = from_objects(policy.get_modality_config())
    return Gr00t(f"gr00t n1.6+ {model} {embodiment}", interface, False, ask, policy.reset)


def _load_n15(model: str, embodiment: str, data_config: str, device: str, steps: int | None) -> Gr00t:
    configs = import_module("gr00t.experiment.data_config")
    if not data_config:
        known = ", ".join(sorted(getattr(configs, "DATA_CONFIG_MAP", {})))
        raise TeacherError(f"GR00T N1.5 needs --data-config, the one that it was trained with; there are: {known}")
    if hasattr(configs, "load_data_config"):
        config = configs.load_data_config(data_config)
    elif data_config in configs.DATA_CONFIG_MAP:
        config = configs.DATA_CONFIG_MAP[data_config]
    else:
        raise TeacherError(f"no data config {data_config}; there are: {', '.join(sorted(configs.DATA_CONFIG_MAP))}")
    policy = import_module("gr00t.model.policy").Gr00tPolicy(
        model_path=model,
        embodiment_tag=embodiment,
        modality_config=config.modality_config(),
        modality_transform=config.transform(),
        denoising_steps=steps,
        device=device,
    )
    identity = f"gr00t n1.5 {model} {embodiment} {data_config} steps {steps or 'default'}"
    return Gr00t(identity, from_objects(policy.get_modality_config()), True, policy.get_action, lambda: None)


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent of it is missing
        return False
