"""A process learns its place from its launcher's environment variables, and says in one line what is wrong
with them."""

import pytest

from maskreid_dist.errors import UserError
from maskreid_dist.training.environment import Place, is_first_process, place_of_process, tell_libraries

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "8"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPIRUN["OMPI_COMM_WORLD_LOCAL_SIZE"] = "4"


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, Place()),
        (TORCHRUN, Place(5, 1, 8)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}, Place(1, 1, 2)),
        ({**SRUN, "MASTER_ADDR": "node1"}, Place(5, 1, 8)),
        ({**SRUN, **TORCHRUN, "RANK": "6"}, Place(6, 1, 8)),  # torchrun below srun: its own count
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, Place()),  # a batch script
        ({**SRUN, "SLURM_STEP_NUM_TASKS": "1"}, Place()),
        ({**MPIRUN, "MASTER_ADDR": "node1"}, Place(5, 1, 8)),
        ({"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}, Place()),
    ],
)
def test_the_place_of_a_process(environment: dict[str, str], place: Place) -> None:
    assert place_of_process(environment) == place


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"RANK": "0"}, "WORLD_SIZE is not set"),
        ({"RANK": "first", "WORLD_SIZE": "2"}, "RANK is 'first', not a number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE is 2"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "0"},
            "MASTER_PORT is 0: give a free one",
        ),
        (SRUN, "srun starts 8 tasks, and MASTER_ADDR is not set"),
        (MPIRUN, "mpirun starts 8 tasks, and MASTER_ADDR is not set"),
    ],
)
def test_what_is_wrong_is_one_line(environment: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        place_of_process(environment)
    assert "\n" not in str(caught.value)


def test_libraries_are_told_what_the_launcher_has_not() -> None:
    environment = {**SRUN, "MASTER_ADDR": "node1"}
    tell_libraries(place_of_process(environment), environment)
    assert (
        environment["RANK"] == "5" and environment["WORLD_SIZE"] == "8" and environment["LOCAL_RANK"] == "1"
    )
    assert environment["MASTER_ADDR"] == "node1" and environment["MASTER_PORT"] == "29500"
    alone: dict[str, str] = {}
    tell_libraries(place_of_process(alone), alone)
    assert alone["RANK"] == "0" and alone["MASTER_ADDR"] == "127.0.0.1" and int(alone["MASTER_PORT"]) > 0


def test_one_process_says_what_is_wrong() -> None:
    assert is_first_process({}) and is_first_process({**TORCHRUN, "RANK": "0"})
    assert is_first_process({**TORCHRUN, "RANK": "nine"})
    assert not is_first_process(TORCHRUN) and not is_first_process(SRUN)
    assert is_first_process({**SRUN, "SLURM_PROCID": "0"})
    assert not is_first_process(MPIRUN) and is_first_process({**MPIRUN, "OMPI_COMM_WORLD_RANK": "0"})
