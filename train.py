"""Train a text classifier: ``python train.py experiment=quickstart``. ``--help`` lists what can be chosen."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from textbed import command, config
from textbed.data.ahead import tokenizing
from textbed.imports import quickly


@hydra.main(version_base="1.3", config_path="configs", config_name="train")
def main(cfg: DictConfig) -> None:
    # torch and its kin are imported below, not above, so that help and mistakes are answered within a second.
    with command.job():
        if cfg.resume is None:
            choices = command.chosen_options()
            checked = config.check(cfg, choices)
            with tokenizing(checked), quickly(checked):
                from textbed.training import train

            folder = train(checked, command.task_overrides(), choices)
        else:
            from textbed.training import resume

            folder = resume(cfg.resume, command.task_overrides(without="resume"))
        if folder is not None:  # the first process alone has a folder to show
            print(folder, flush=True)


if __name__ == "__main__":
    command.run(main, configs=Path(__file__).parent / "configs")
