import re

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from conversion_retrieval.training import memory
from conversion_retrieval.training.memory import MIB, Footprint, MemoryMeter, held_bytes
from conversion_retrieval.training.stage import make_trainer
from tests.training.runs import small_config
from tests.training.separable import separable_world

CPU = torch.device("cpu")


def test_bytes_of_a_nest_are_those_of_its_arrays():
    footprint_free = {
        "a": np.zeros(3, np.int16),
        "b": (torch.zeros(2, 2), [pa.array([1, 2], pa.int32()), "text"], None),
    }
    assert held_bytes(footprint_free) == 6 + 16 + 8


def test_the_activations_of_a_step_are_counted_once_and_without_what_is_counted_elsewhere():
    batch, weight = torch.zeros(10, 4), nn.Parameter(torch.zeros(4, 8))
    meter = MemoryMeter(CPU)
    with meter.first_step(batch, (), weight):
        hidden = batch @ weight  # saves the batch and the weight
        (hidden * hidden).sum().backward()  # saves hidden, twice
    with meter.first_step(torch.zeros(99), (), ()):
        (weight * weight).sum().backward()
    footprint = meter.footprint(tables=np.zeros(5, np.int8), parameters=weight, optimizer_state={"m": weight})
    assert footprint.batch == 4 * (10 * 4 + 10 * 8)
    assert (footprint.tables, footprint.parameters, footprint.optimizer_state) == (5, 128, 128)


def test_the_peak_counts_what_was_allocated_since_the_meter_began_and_nothing_before():
    torch.ones(2**28)  # 1 GiB
    meter = MemoryMeter(CPU)
    with meter.first_step(torch.zeros(1), (), ()):
        taken = torch.ones(2**26)
    footprint = meter.footprint(tables=(), parameters=(), optimizer_state=())
    assert 0.9 < footprint.peak / taken.nbytes < 1.5


def test_where_an_earlier_peak_stays_only_a_higher_one_is_told(monkeypatch, tmp_path):
    sizes = {"VmHWM": 900 * MIB, "VmRSS": 100 * MIB}
    monkeypatch.setattr(memory, "CLEAR_REFS", tmp_path / "none" / "clear_refs")
    monkeypatch.setattr(memory, "_process_bytes", sizes.__getitem__)
    meter = MemoryMeter(CPU)
    with meter.first_step(torch.zeros(1), (), ()):
        pass
    assert meter.footprint(tables=(), parameters=(), optimizer_state=()) is None
    sizes["VmHWM"] = 1000 * MIB
    assert meter.footprint(tables=(), parameters=(), optimizer_state=()).peak == 900 * MIB


@pytest.mark.parametrize(("peak", "known"), [(0, False), (5, True)])
def test_a_peak_below_the_start_is_none_above_it_and_an_untold_one_is_unknown(monkeypatch, peak, known):
    meter = MemoryMeter(CPU)
    with meter.first_step(torch.zeros(1), (), ()):
        pass
    monkeypatch.setattr("conversion_retrieval.training.memory._process_bytes", lambda _: peak)
    footprint = meter.footprint(tables=(), parameters=(), optimizer_state=())
    assert (footprint is not None) is known
    assert footprint is None or footprint.peak == 0


def test_a_footprint_takes_in_what_came_later_and_never_forgets_a_peak(monkeypatch):
    meter = MemoryMeter(CPU)
    footprint = Footprint(fixed=7, peak=2**50, tables=50, parameters=20, optimizer_state=40, batch=40)
    assert meter.later(footprint) == footprint
    monkeypatch.setattr("conversion_retrieval.training.memory._process_bytes", lambda _: meter._fixed + 2**51)
    assert meter.later(footprint).peak == 2**51
    assert meter.later(footprint).held == footprint.held


def test_the_ratio_is_the_peak_over_what_must_be_held():
    footprint = Footprint(fixed=7, peak=300, tables=50, parameters=20, optimizer_state=40, batch=40)
    assert (footprint.held, footprint.ratio, footprint.values()["ratio"]) == (150, 2.0, 2.0)


def test_a_training_knows_its_footprint_after_the_first_step():
    config = small_config(training={"max_steps": 2}, model={"memory_dim": 8})
    trainer = make_trainer(separable_world(num_users=60), config)
    assert trainer.footprint() is None
    trainer.fit()
    footprint = trainer.footprint()
    trained = sum(4 * p.numel() for p in trainer.learner.optimizer.parameters.values())
    frozen = sum(held_bytes(buffer) for buffer in trainer.learner.model.buffers())
    assert frozen >= 2 * 4 * 8 * trainer.builder.dataset.num_items  # the memory's two tables
    assert footprint.parameters == trained + frozen
    assert footprint.optimizer_state > 2.9 * trained  # two moments and the average
    assert re.fullmatch(r"memory: peak [\d,]+ MiB above the libraries' .* x the .*", str(footprint))
