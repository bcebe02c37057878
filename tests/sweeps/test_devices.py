"""Which slots a machine has: its GPUs, or as many trials as cores and memory bear."""

from __future__ import annotations

from typing import Any

import pytest

from textbed.errors import UserError
from textbed.schema import SweepConfig, defaults
from textbed.sweeps import devices
from textbed.sweeps.devices import slots


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Eight cores, 32 GiB, four GPUs of which two may be used."""
    monkeypatch.setattr(devices, "usable_cores", lambda: 8)
    monkeypatch.setattr(devices, "available_gib", lambda: 32.0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1, 3")
    return monkeypatch


def settings(**given: Any) -> dict[str, Any]:
    return {**defaults(SweepConfig), **given}


def test_a_trial_for_each_gpu_that_may_be_used(machine: pytest.MonkeyPatch) -> None:
    found = slots(settings())
    assert [(slot.name, slot.threads, dict(slot.environment)) for slot in found] == [
        ("gpu 1", 4, {"CUDA_VISIBLE_DEVICES": "1", "OMP_NUM_THREADS": "4"}),
        ("gpu 3", 4, {"CUDA_VISIBLE_DEVICES": "3", "OMP_NUM_THREADS": "4"}),
    ]
    assert not any(slot.is_cpu for slot in found)


def test_several_trials_on_a_gpu_and_several_gpus_for_a_trial(machine: pytest.MonkeyPatch) -> None:
    found = slots(settings(trials_per_device=2))
    assert [slot.name for slot in found] == ["gpu 1", "gpu 3", "gpu 1", "gpu 3"]  # one each first
    assert {slot.threads for slot in found} == {2}
    assert [slot.name for slot in slots(settings(trials_per_device=2, at_once=3))] == [
        "gpu 1",
        "gpu 3",
        "gpu 1",
    ]
    (pair,) = slots(settings(devices_per_trial=2))
    assert (pair.name, pair.environment["CUDA_VISIBLE_DEVICES"]) == ("gpu 1,3", "1,3")
    chosen = slots(settings(devices=[0, 1, 2, 5, 7], devices_per_trial=2))
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in chosen] == ["0,1", "2,5"]
    with pytest.raises(UserError, match=r"devices_per_trial=4: there are 2 here \(1, 3\)"):
        slots(settings(devices_per_trial=4))


def test_on_the_cpu_as_many_as_cores_and_memory_bear(machine: pytest.MonkeyPatch) -> None:
    found = slots(settings(), accelerator="cpu")
    assert [slot.name for slot in found] == [f"cpu {number}" for number in range(8)]
    assert dict(found[0].environment) == {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    assert [slot.threads for slot in slots(settings(memory_gib=10.0), "cpu")] == [2, 2, 2]
    assert [slot.threads for slot in slots(settings(), "cpu", threads=4)] == [4, 4]
    assert [slot.threads for slot in slots(settings(at_once=2), "cpu")] == [4, 4]
    assert len(slots(settings(memory_gib=100.0), "cpu")) == 1
    machine.setenv("CUDA_VISIBLE_DEVICES", "")
    assert len(slots(settings())) == 8  # no GPU may be used


def test_what_the_system_says_of_this_machine() -> None:
    assert devices.usable_cores() >= 1
    assert devices.available_gib() > 0.1
    assert devices.killed_for_memory() >= 0
