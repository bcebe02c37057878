"""The door from ``python train.py -m`` to ``textbed.sweeps``: Hydra takes plugins from this package alone.

Imported by every command, so nothing but Hydra is imported at the top.
"""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# ``hydra/sweeper=textbed``, the default (configs/hydra/default.yaml). ``params`` is what the config itself
# sweeps over, see textbed/sweeps/space.py.
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="textbed",
    node={"_target_": "hydra_plugins.textbed_sweeper.TextbedSweeper", "params": None},
    provider="textbed",
)


class TextbedSweeper(Sweeper):
    """Runs every job as a process of its own; no launcher has a part in it."""

    def __init__(self, params: DictConfig | None = None) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.composed = hydra_context.config_loader, config

    def sweep(self, arguments: list[str]) -> None:
        from textbed.sweeps.launch import launch

        launch(self.composed, self.params or {}, arguments, self.loader)
