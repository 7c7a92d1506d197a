"""The environment is read, checked and cleared before anything starts."""

import os

import pytest
from lightning.pytorch.utilities import rank_zero_only
from tiny_training import config_with

from lcm.errors import UserError
from lcm.training import signals
from lcm.training.environment import LAUNCHER, Launch, SrunEnvironment, read_environment, whereabouts

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
    **MEETING,
}  # fmt: skip
JOB = {"SLURM_JOB_ID": "77", "SLURM_JOB_NAME": "interactive", "SLURM_NNODES": "1", "SLURM_NTASKS": "2"}
TASK = {**JOB, "SLURM_STEP_ID": "3", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "2"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """set(**variables): the whole environment, but for the path; put back afterwards."""
    kept = {"PATH": os.environ["PATH"]}
    monkeypatch.setattr(os, "environ", dict(kept))
    monkeypatch.setattr(rank_zero_only, "rank", 0)

    def setenv(variables):
        os.environ.update(variables)

    return setenv


def read(*overrides, check=False):
    return read_environment(config_with(*overrides), checks_only=check)


def test_lightning_s_own_variables_change_nothing_and_are_named(environment, capsys):
    environment({"PL_TRAINER_MAX_TIME": "00:00:00:01", "PL_TRAINER_FAST_DEV_RUN": "1", "PL_GLOBAL_SEED": "3"})
    assert read() == Launch("lcm train", 0, 1, 1)
    assert not [name for name in os.environ if name.startswith("PL_")]
    lines = capsys.readouterr().err.splitlines()
    ignored = "is ignored: a run's settings come from its configuration"
    assert f"lcm train: PL_TRAINER_MAX_TIME=00:00:00:01 {ignored}" in lines
    assert len(lines) == 3


@pytest.mark.parametrize(
    "left",
    [{"LOCAL_RANK": "0"}, {"RANK": "3"}, {"WORLD_SIZE": "4"}, MEETING, {"RANK": "0", "WORLD_SIZE": "1", **MEETING}],
)
def test_what_a_container_left_is_ignored_by_a_single_process(left, environment, capsys):
    environment(left)
    assert read("trainer.devices=auto") == Launch("lcm train", 0, 1, 1)
    assert rank_zero_only.rank == 0, "or a left-over RANK=3 would silence the run"
    assert not set(left) & os.environ.keys()
    assert f"{next(iter(left))}=" in capsys.readouterr().err


@pytest.mark.parametrize(
    "left", [{"LOCAL_RANK": "0"}, {"RANK": "0", **MEETING}, {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}]
)
def test_ranks_that_would_wait_for_one_another_are_refused(left, environment):
    environment(left)
    with pytest.raises(UserError, match=rf"{next(iter(left))}=0.* as if a launcher .*unset {next(iter(left))}.* all 2"):
        read("trainer.devices=2")


def test_left_over_meeting_points_do_not_stop_ranks_of_our_own(environment):
    environment(MEETING)
    assert read("trainer.devices=2") == Launch("lcm train", 0, 2, 2)
    assert not MEETING.keys() & os.environ.keys()


def test_torchrun_without_devices_is_one_run(environment):
    environment(TORCHRUN)
    assert read("trainer.devices=auto") == Launch("torchrun", 1, 2, 2)
    assert rank_zero_only.rank == 1


@pytest.mark.parametrize(
    ("variables", "settings", "line"),
    [
        (TORCHRUN, ["trainer.devices=1"], r"1 processes, but torchrun started 2 \(WORLD_SIZE\); set trainer.devices=2"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "1"}, ["trainer.devices=auto"], r"set trainer.nodes=2 and trainer.devices=1"),
        (TASK, ["trainer.devices=4"], r"4 processes, but srun started 2 on 1 \(SLURM_NTASKS\); set trainer.devices=2"),
        (JOB, ["trainer.devices=2"], r"SLURM_NTASKS=2: .*job 77 has 2 tasks, but srun has not .*'srun lcm train …'"),
        ({"SLURM_NTASKS": "4"}, [], r"SLURM_NTASKS=4: .* unset SLURM_NTASKS if no job is meant"),
        ({"SLURM_NTASKS": "2(x2)"}, [], r"SLURM_NTASKS=2\(x2\): expected a number"),
        ({}, ["trainer.nodes=2"], r"trainer.nodes=2: nothing tells this process where the other nodes are"),
        ({"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", **MEETING}, ["trainer.devices=2"], r"WORLD_SIZE=1 says"),
    ],
)  # fmt: skip
def test_other_numbers_than_those_that_were_started_are_refused(variables, settings, line, environment):
    environment(variables)
    with pytest.raises(UserError, match=line):
        read(*settings)


def test_a_task_of_srun_is_a_rank_whatever_the_name_of_the_job(environment):
    """Lightning does not look at Slurm where the job's name is salloc's own, "interactive"."""
    environment({**TASK, "LOCAL_RANK": "0", "RANK": "0", "SLURM_NTASKS_PER_NODE": "4"})
    launch = read("trainer.devices=2")
    assert launch == Launch("srun", 1, 2, 2)
    plugin = launch.plugin()
    assert isinstance(plugin, SrunEnvironment)
    assert (plugin.world_size(), plugin.global_rank(), plugin.local_rank()) == (2, 1, 1)
    plugin.validate_settings(2, 1)


def test_two_steps_of_a_job_do_not_meet_at_one_port(environment):
    ports = []
    for step in ("0", "1"):
        environment({**TASK, "SLURM_STEP_ID": step, "SLURM_STEP_NODELIST": "n[4-5]"})
        os.environ.pop("MASTER_PORT", None)
        plugin = SrunEnvironment(2)
        ports.append(plugin.main_port)
        assert plugin.main_address == "n4", "the first host of the step"
    assert len(set(ports)) == 2


def test_a_check_in_a_batch_script_compares_tasks_and_asks_for_no_srun(environment):
    environment(JOB)
    assert read("trainer.devices=2", check=True) == Launch("lcm train", 0, 2, 2)
    with pytest.raises(UserError, match=r"make 3 processes, but Slurm's job has 2 tasks"):
        read("trainer.devices=3", check=True)


def test_one_task_of_slurm_starts_its_own_ranks(environment):
    environment({**TASK, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"})
    assert read("trainer.devices=2") == Launch("lcm train", 0, 2, 2)


def test_a_rank_knows_the_process_that_started_it(environment, monkeypatch):
    followed = []
    monkeypatch.setattr(signals, "end_with", followed.append)
    environment({LAUNCHER: str(os.getppid()), "LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2", **MEETING})
    assert read("trainer.devices=2") == Launch("lcm train", 1, 2, 2)
    assert followed == [os.getppid()]
    os.environ[LAUNCHER] = "1234567"
    with pytest.raises(UserError, match="rank 0, which started this process, has ended"):
        read("trainer.devices=2")


def test_a_second_run_of_a_process_starts_afresh(environment):
    """Lightning leaves the variables of the ranks that it has started."""
    environment({LAUNCHER: str(os.getpid()), "LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "2", **MEETING})
    assert read("trainer.devices=2") == Launch("lcm train", 0, 2, 2)


def test_only_a_process_that_starts_ranks_itself_marks_them(environment):
    """Or the second run of a rank of torchrun would start ranks of its own."""
    environment(TORCHRUN)
    for _ in range(2):
        launch = read("trainer.devices=2")
        launch.mark()
        assert launch.by == "torchrun"
    Launch("lcm train", 0, 2, 2).mark()
    assert os.environ[LAUNCHER] == str(os.getpid())


def test_a_line_of_a_log_names_node_job_and_restart(environment):
    environment({"SLURMD_NODENAME": "node7", "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": "2"})
    assert whereabouts() == ("node7", "17", 2)
