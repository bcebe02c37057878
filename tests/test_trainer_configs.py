"""Every trainer config builds a Trainer where the hardware is there, and else says plainly that it is not."""

from __future__ import annotations

import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in (CONFIGS / "trainer").glob("*.yaml"))
NEEDS_GPU = {"gpu", "ddp", "fsdp"}
GPU = torch.cuda.is_available()


def trainer_config(name, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose(f"trainer/{name}", list(overrides)).trainer


def build(name, *overrides):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return instantiate(trainer_config(name, *overrides), logger=False)


def test_these_are_the_trainers():
    assert NAMES == ["auto", "cpu", "ddp", "ddp_sim", "fsdp", "gpu", "mps"]


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_trainers_own_and_each_is_explained(name):
    text = (CONFIGS / f"trainer/{name}.yaml").read_text()
    assert text.startswith("# ")
    base = trainer_config("auto")
    config = trainer_config(name)
    assert set(config) == set(base)
    # Our own samplers divide the batches; Lightning's would repeat documents in evaluation.
    assert config.use_distributed_sampler is False
    assert config.num_sanity_val_steps == 0
    if name == "auto":
        settings = [line for line in text.splitlines() if not line.startswith(("#", "_target_"))]
        assert [line for line in settings if " # " not in line] == []


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NEEDS_GPU | {"mps"}])
def test_trainers_that_need_no_gpu(name):
    trainer = build(name)
    assert isinstance(trainer, pl.Trainer)
    assert trainer.num_devices == (2 if name == "ddp_sim" else 1)
    assert isinstance(trainer.strategy, DDPStrategy if name == "ddp_sim" else SingleDeviceStrategy)
    if name in ("cpu", "ddp_sim"):
        assert trainer.strategy.root_device.type == "cpu"
    if name == "ddp_sim":
        assert trainer.strategy.process_group_backend == "gloo"


@pytest.mark.parametrize("name", sorted(NEEDS_GPU))
@pytest.mark.skipif(GPU, reason="has a GPU")
def test_trainers_that_need_a_gpu_say_so(name):
    with pytest.raises(InstantiationException, match=r"No supported gpu backend found"):
        build(name)


@pytest.mark.parametrize("name", sorted(NEEDS_GPU))
@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_trainers_on_a_gpu(name):
    assert build(name).strategy.root_device.type == "cuda"


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="has an Apple GPU")
def test_the_apple_trainer_says_that_there_is_none():
    with pytest.raises(InstantiationException, match=r"MPSAccelerator.*can not run on your system"):
        build("mps")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true"])
def test_precisions_of_the_cpu(precision):
    assert build("cpu", f"trainer.precision={precision}").precision == precision


def test_half_precision_on_the_cpu_becomes_bfloat16_with_a_word():
    with pytest.warns(
        UserWarning, match=r"AMP with fp16 is not supported on CPU. Using `precision='bf16-mixed'`"
    ):
        trainer = instantiate(trainer_config("cpu", "trainer.precision=16-mixed"), logger=False)
    assert trainer.precision == "bf16-mixed"
