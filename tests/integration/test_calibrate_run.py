"""One profile, however the work is split, killed or resumed; and what is refused."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch

from calibrate.inputs.encode import Encoder, to_device
from calibrate.measuring.run import merge_states
from calibrate.measuring.state import SUFFIX, load_state
from calibrate.probes.attribution.probe import AttributionProbe
from calibrate.ranks import Ranks
from planner.errors import CalibrationError, InputError
from planner.profile import Profile
from planner.report.page import profile_page
from planner.report.probes import sections
from planner.runtime import observe
from planner.runtime.model.adapters import find_parts
from tests.integration import calibrate_stub as stub
from tests.integration.calibrate_stub import REQUESTED, SETTINGS, run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("samples")


@pytest.fixture(scope="module")
def chosen(folder):
    return stub.samples(folder)


@pytest.fixture(scope="module")
def whole(chosen):
    return run(chosen)


@pytest.fixture(scope="module")
def unanswered_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("unanswered")


@pytest.fixture(scope="module")
def unanswered(unanswered_folder):
    return stub.samples(unanswered_folder, count=8, answer=None)


def saved(profile, folder):
    profile.save(folder / "profile.json")
    return (folder / "profile.json").read_bytes() + (folder / "profile.safetensors").read_bytes()


@pytest.fixture(scope="module")
def expected(whole, tmp_path_factory):
    return saved(whole, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def requested(unanswered):
    return run(unanswered, **REQUESTED)


@pytest.fixture(scope="module")
def requested_bytes(requested, tmp_path_factory):
    return saved(requested, tmp_path_factory.mktemp("requested"))


def test_profile_is_complete_and_survives_storage(whole, tmp_path, chosen):
    saved(whole, tmp_path)
    back = Profile.load(tmp_path / "profile.json")
    assert back == whole
    assert {name: result.n for name, result in back.probes.items()} == {
        "prompt": 12, "influence": 12, "sinks": 12, "sparsity": 12, "value_norms": 12, "masking": 5, "flip": 4,
    }  # fmt: skip
    assert back.samples.digest == chosen.digest and back.samples.source == "samples.jsonl"
    assert back.prompt.visual_tokens == 16 and back.prompt.system_tokens == 2
    assert back.arrays["influence/kept.data"].shape == (12 * 4, 5)
    assert back.environment["dtype"] == "float32" and back.model.layers == stub.LAYERS


def test_shards_in_any_order_give_the_profile_of_one_process(chosen, expected, tmp_path):
    for index in range(3):
        assert run(chosen, out=tmp_path, shard=(index, 3)) is None
    paths = sorted(tmp_path.glob(f"*{SUFFIX}"))
    assert len(paths) == 3
    for order in (paths, paths[::-1]):
        assert saved(merge_states(order), tmp_path / "merged") == expected
    with pytest.raises(CalibrationError, match="lacks 4 of its samples"):
        merge_states(paths[:2])


def test_probes_on_request_do_not_care_about_shards_either(unanswered, requested, requested_bytes, tmp_path):
    assert requested.probes["attribution"].values["attributed"] >= 1
    assert "coefficients" in requested.probes["context"].values["fit"]
    for index in range(2):
        run(unanswered, out=tmp_path, shard=(index, 2), **REQUESTED)
    paths = sorted(tmp_path.glob(f"*{SUFFIX}"))
    assert saved(merge_states(paths[::-1]), tmp_path / "merged") == requested_bytes


def test_every_probe_can_be_shown(whole, requested):
    for profile in (whole, requested):
        names = [section.name for section in sections(profile)]
        assert sorted([*names, "prompt"]) == sorted(profile.probes)
        page = profile_page(profile)
        assert all(f'<section id="{name}">' in page for name in names)


def test_resume_runs_no_finished_sample_again(chosen, expected, tmp_path):
    run(chosen, out=tmp_path, shard=(0, 2))
    built, forwards = stub.model(fresh=True), []
    built.register_forward_pre_hook(lambda m, a, k: forwards.append(len(k["input_ids"])), with_kwargs=True)
    assert saved(run(chosen, built, out=tmp_path, resume=True), tmp_path / "profile") == expected
    # Shard 0 had batches 0, 2 and 4. Batch 1 (samples 2 and 3): the shared pass; dense and 4 points of a curve, an
    # answer of 2 tokens, the prompt with it, and 7 ranges for masking; 2 for flip. Batches 3 and 5: the shared pass
    # only. Before them, two for the estimate.
    assert len(forwards) == 2 + (1 + (1 + 4 + 2 + 1 + 7) + 2) + 2
    forwards.clear()
    assert saved(run(chosen, built, out=tmp_path, resume=True), tmp_path / "profile") == expected
    assert forwards == []


LAUNCH = """
import sys, time, torch
from pathlib import Path
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import calibrate.measuring.measure
from calibrate.inputs.samples import load_samples
from tests.integration import calibrate_stub as tests
calibrate.measuring.measure.STATE_INTERVAL_S = 0.0
steps = calibrate.measuring.measure._steps
def slow(*args):
    for step in steps(*args):
        time.sleep(float(sys.argv[4]))
        yield step
calibrate.measuring.measure._steps = slow
profile = tests.run(load_samples(sys.argv[2]), out=Path(sys.argv[3]), **getattr(tests, sys.argv[5]))
if profile is not None:
    profile.save(Path(sys.argv[3]) / "profile.json")
"""


def environment(**extra):
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **extra}


def launch(folder, out, pause=0.0, options="ORDINARY", **extra):
    command = [sys.executable, "-c", LAUNCH, str(ROOT), str(folder / "samples.jsonl"), str(out), str(pause), options]
    return subprocess.Popen(command, env=environment(**extra), stderr=subprocess.PIPE, text=True)


def kill_when(state_holds, folder, out, options):
    """Start a slowed run, and kill -9 it once its state on disk holds what it should."""
    process = launch(folder, out, pause=0.3, options=options)
    state = out / f"0-of-1{SUFFIX}"
    deadline = time.monotonic() + 120
    while not (state.exists() and state_holds({name: len(table) for name, table in load_state(state)[1].items()})):
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "profile.json").exists()


def test_killed_in_the_middle_and_resumed_gives_the_identical_profile(chosen, folder, expected, tmp_path):
    kill_when(lambda rows: rows["influence"] >= 2, folder, tmp_path, "ORDINARY")
    lines = []
    assert saved(run(chosen, lines=lines, out=tmp_path, resume=True), tmp_path / "resumed") == expected
    assert lines[0].startswith("resumed: prompt ")
    done = int(lines[0].split("prompt ")[1].split()[0])
    assert 0 < done < len(chosen)


def test_killed_between_two_samples_of_a_batch(unanswered, unanswered_folder, requested_bytes, tmp_path, monkeypatch):
    # Attribution takes samples one by one: the first of the batch is not attributed again.
    kill_when(lambda rows: rows["attribution"] == 1, unanswered_folder, tmp_path, "REQUESTED")
    attributed, row = [], AttributionProbe._row
    monkeypatch.setattr(AttributionProbe, "_row", lambda *a: attributed.append(a[-1].where) or row(*a))
    found = run(unanswered, out=tmp_path, resume=True, **REQUESTED)
    assert saved(found, tmp_path / "resumed") == requested_bytes
    assert [where.rpartition(":")[2] for where in attributed] == ["2", "3"]


def test_two_gloo_processes_give_the_profile_of_one(folder, expected, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [launch(folder, tmp_path, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    for process in ranks:
        _, errors = process.communicate(timeout=180)
        assert process.returncode == 0, errors
    found = (tmp_path / "profile.json").read_bytes() + (tmp_path / "profile.safetensors").read_bytes()
    assert found == expected
    assert len(list(tmp_path.glob(f"*{SUFFIX}"))) == 2


def test_ranks_that_disagree_on_the_samples_are_refused(folder, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    stub.samples(other, count=10)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [
        launch(where, tmp_path, RANK=str(r), LOCAL_RANK=str(r), **shared) for r, where in enumerate((folder, other))
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=180)
        assert process.returncode != 0 and "ranks disagree on the samples" in errors


def test_a_damaged_state_is_refused_and_kept(chosen, tmp_path):
    run(chosen, out=tmp_path, probes=("influence",))
    path = tmp_path / f"0-of-1{SUFFIX}"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    for damaged in (bytes(content), bytes(content[:100]), b"", bytes(content) + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(CalibrationError, match="0-of-1"):
            run(chosen, out=tmp_path, resume=True, probes=("influence",))
        assert path.read_bytes() == damaged


def test_a_state_of_another_run_is_refused(chosen, tmp_path):
    run(chosen, out=tmp_path, probes=("influence",))
    with pytest.raises(CalibrationError, match=r"another run: .*settings"):
        run(chosen, out=tmp_path, resume=True, probes=("influence",), settings={"influence": {"exit_cos": 0.9}})
    with pytest.raises(CalibrationError, match="another run: samples"):
        run(chosen.choose(5), out=tmp_path, resume=True, probes=("influence",))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nan_activations_name_layer_and_sample(chosen, dtype):
    built = stub.model(dtype, fresh=True)
    # Two passes for the estimate, and the first batch: in half precision its first sample runs by itself as well.
    before = 3 if dtype == torch.float32 else 2 + 2 + 1

    def spoil(module, args, kwargs):
        hidden = (args[0] if args else kwargs["hidden_states"]).clone()
        if len(seen) == before:  # the second batch, its second sample
            hidden[1, 7] = float("nan")
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    seen = []
    built.get_decoder().layers[2].register_forward_pre_hook(spoil, with_kwargs=True)
    built.get_decoder().layers[3].register_forward_hook(lambda *a: seen.append(1))
    with pytest.raises(CalibrationError, match=r"layer 2 .*samples\.jsonl:4") as caught:
        run(chosen, built, probes=("influence", "sinks"))
    assert "bfloat16" in caught.value.remedy


def test_a_model_whose_weights_are_offloaded_is_measured_alike(unanswered, tmp_path):
    built = stub.model(fresh=True)
    accelerate.disk_offload(built, tmp_path, execution_device=torch.device("cpu"))
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    options = {
        "probes": ("influence", "masking", "flip", "sink_masking", "attribution", "context"),
        "settings": {**REQUESTED["settings"], "masking": {**SETTINGS["masking"], "samples": 2}},
    }
    found, whole = run(unanswered, built, **options), run(unanswered, **options)
    assert found.environment == whole.environment
    for name, array in whole.arrays.items():
        # Alignment of memory decides how a product is rounded.
        np.testing.assert_allclose(found.arrays[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_bfloat16_model_is_measured_in_float32(chosen):
    built = stub.model(torch.bfloat16)
    found = run(chosen, built, probes=("influence", "sinks", "sparsity", "value_norms"))
    assert found.environment["dtype"] == "bfloat16"
    assert found.arrays["influence/output_norm.data"].dtype == "float32"
    whole = run(chosen, probes=("influence",))
    low = found.probes["influence"].values["min_cos"]["value"]
    assert low == pytest.approx(whole.probes["influence"].values["min_cos"]["value"], abs=0.1)


def test_what_company_in_a_batch_does_in_half_precision_is_kept(chosen):
    built = stub.model(torch.bfloat16)
    found = run(chosen, built, probes=("influence",), batch_size=4)
    expected = []
    encoder = Encoder(stub.Processor(), find_parts(built).visual_ids)
    for start in (0, 4, 8):
        lowest = []
        for ids in ([start], range(start, start + 4)):
            cos = []
            inputs = to_device(encoder([chosen[i] for i in ids]), built)
            with (
                torch.inference_mode(),
                observe(built, lambda v, c=cos: c.append(v.influence().cos[0, v.visual[0]].min())),
            ):
                built(**inputs)
            lowest.append(torch.stack(cos))
        expected.append((lowest[0] - lowest[1]).abs().numpy())
    noise = found.arrays["influence/noise.data"].reshape(12, stub.LAYERS)
    np.testing.assert_allclose(noise[[0, 4, 8]], expected, atol=1e-6)
    assert np.isnan(noise[[1, 2, 3, 5, 6, 7, 9, 10, 11]]).all()
    values = found.probes["influence"].values["noise"]
    assert (
        values["n"] == 3 and values["most"]["1"] == pytest.approx(np.max(expected), abs=1e-6) and np.max(expected) > 0
    )
    assert values["exceeds_filter_cos"] is bool(np.max(expected) > 0.005)
    (section,) = [one for one in sections(found) if one.name == "influence"]
    assert ("below the noise" in section.findings[-1]) is values["exceeds_filter_cos"]
    assert "Measured alone and in a batch" in section.findings[-1]


def test_float32_has_no_noise_to_measure(whole):
    assert whole.probes["influence"].values["noise"] == {"n": 0}


def test_refusals(chosen, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="shard 3/3"):
        run(chosen, out=tmp_path, shard=(3, 3))
    with pytest.raises(InputError, match="needs a folder"):
        run(chosen, shard=(0, 2))
    with pytest.raises(InputError, match="cannot hold 0 samples"):
        run(chosen, batch_size=0)
    with pytest.raises(InputError, match="no probe 'influense'") as caught:
        run(chosen, probes=("influense",))
    assert "influence" in caught.value.remedy
    with pytest.raises(InputError, match="no such setting"):
        run(chosen, settings={"influence": {"nonsense": 1}})
    with pytest.raises(InputError, match="no shards"):
        merge_states([])
    built = stub.model(fresh=True)
    built.hf_device_map = {"": 0}
    monkeypatch.setattr("calibrate.measuring.run.world", lambda: Ranks(0, 2))
    with pytest.raises(InputError, match="device_map"):
        run(chosen, built)


def test_samples_without_answers_measure_agreement_only(tmp_path):
    found = run(stub.samples(tmp_path, 5, answer=None), probes=("masking",))
    values = found.probes["masking"].values
    assert values["masked_from"]["agreement"][0]["n"] == 5
    assert values["masked_from"]["first_token_accuracy"][0]["n"] == 0


def test_the_profile_is_strict_json(whole, tmp_path):
    saved(whole, tmp_path)
    json.loads(
        (tmp_path / "profile.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the profile")
    )
