"""Two processes (gloo, on the CPU) against one, and against each other: gradients, weights, failures, stops."""

import pytest
import torch

from tests.running import assert_equal_runs, lone_trainer
from tests.workers.two_processes import LOSSES, STILL, after_two_steps
from toolkit.run_folder.records import read_log

pytestmark = pytest.mark.dist


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_two_processes_equal_those_of_one(two, shard_folder, name):
    """Of each network, at the second step, with 1 and 2 micro-batches; R1 and R2 are in every step that has them."""
    expected = after_two_steps(lone_trainer(shard_folder, **STILL, **LOSSES[name]))
    for parts in (1, 2):
        prefix = f"{name}/{parts}/"
        found, other = ({key.removeprefix(prefix): value for key, value in rank.items() if key.startswith(prefix)}
                        for rank in two.tensors)  # fmt: skip
        assert found.keys() == expected.keys() and len(expected) > 50
        assert all(torch.equal(found[key], other[key]) for key in found)
        for network in ("D.", "G."):
            names = [key for key in expected if key.startswith(network)]
            largest = max(expected[key].abs().max() for key in names)
            assert largest > 1e-3
            assert max((expected[key] - found[key]).abs().max() for key in names) < 1e-5 * largest
        torch.testing.assert_close(found["anchors"], expected["anchors"], rtol=1e-5, atol=1e-7)
    assert (expected["anchors"].abs().sum() > 0) == ("lecam" in LOSSES[name])


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_after_twenty_steps_both_processes_hold_the_same_bytes(two, norm):
    """Networks, averages and both optimizers; batch-norm statistics once averaged, as before every checkpoint."""
    one, other = (facts[f"digests {norm}"] for facts in two.facts)
    assert one == other and set(one) == {"G", "D", "EMA", "ema_0.02kimg", "ema_0.1kimg", "Adam G", "Adam D"}
    assert len(set(one.values())) == len(one)
    assert [facts["rows"] for facts in two.facts] == [[0, 1, 2, 3], [4, 5, 6, 7]]  # of different images
    assert two.facts[0]["adaptive"] == two.facts[1]["adaptive"]
    assert two.facts[0]["adaptive"]["augment_p"] > 0 or two.facts[0]["adaptive"]["r1_scale"] != 1


def test_a_drift_of_one_weight_in_one_process_ends_the_run(two):
    """A millionth in one weight of D on process 1 at step 3; weights are compared at step 4."""
    for facts in two.facts:
        kind, message = facts["drift"]
        assert kind == "UserError" and message.startswith("the networks of process 1 are no longer those of process 0")
        assert "at step 4;" in message
    assert [line["step"] for line in read_log(two.folder / "drift")] == [1, 2, 3, 4]


def test_a_nan_in_one_process_stops_both_before_the_update(two):
    for facts in two.facts:
        kind, message = facts["nan"]
        assert kind == "Diverged" and "no longer finite at step 7" in message
        assert facts["nan step"] == 7 and facts["nan moved"] == []
    assert [path.name for path in (two.folder / "nan").glob("ckpt_*")] == ["ckpt_0000000"]


def test_a_signal_to_one_process_stops_both_and_the_run_resumes_bitwise(two):
    """SIGUSR1 to process 1 in its 4th step: both agree before the 5th."""
    assert [facts["request"] for facts in two.facts] == [[10, 4], [10, 4]]
    assert [facts["resumed at"] for facts in two.facts] == [4, 4]
    assert_equal_runs(two.folder / "whole", two.folder / "signalled", 8)


def test_seven_samples_in_one_shard_give_two_processes_equally_many_steps(two):
    assert [facts["odd"] for facts in two.facts] == [[5, 20], [5, 20]]
    assert read_log(two.folder / "odd")[-1]["images_seen"] == 20


def test_the_main_process_fails_for_all_alike(two):
    first = [f"{kind}: the disk is full" for kind in ("UserError", "NotSaved", "Diverged")]
    assert two.facts[0]["failures"] == [*first, ""]
    assert [told.split(":")[0] for told in two.facts[1]["failures"]] == ["UserError", "NotSaved", "Diverged", ""]
    for facts in two.facts:
        assert facts["world"] == 2 and facts["largest"] == 7
        assert facts["equal"] == [1]


def test_synchronised_batch_norm_on_cpus_is_refused_in_one_line(two):
    assert {facts["sync_bn"] for facts in two.facts} == {
        "sync_bn needs GPUs; on CPUs use --g_norm group, which no process count changes"
    }
