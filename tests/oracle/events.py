"""Event files as TensorBoard itself reads them. Needs the package tensorboard.

    python tests/oracle/events.py build/tests/write_events
"""
import pathlib
import subprocess
import sys
import tempfile

import numpy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

N_STEPS = 300


def main():
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "events.out.tfevents.1700000000.test"
        subprocess.run([sys.argv[1], path], check=True)
        n_records = len(list(RawEventFileLoader(str(path)).Load()))  # stops, with a warning, at the first wrong checksum
        accumulator = EventAccumulator(directory)
        accumulator.Reload()
    assert n_records == 1 + 2 * N_STEPS, n_records
    assert accumulator.file_version == 2.0, accumulator.file_version
    assert sorted(accumulator.Tags()["scalars"]) == ["train/learning_rate", "train/loss"], accumulator.Tags()
    loss, rate = accumulator.Scalars("train/loss"), accumulator.Scalars("train/learning_rate")
    assert [p.step for p in loss] == list(range(N_STEPS))
    assert [p.step for p in rate] == [1000000 * i for i in range(N_STEPS)]
    assert [p.value for p in loss] == [float(numpy.float32(1 / (i + 1))) for i in range(N_STEPS)]
    assert [p.wall_time for p in loss] == [1.7e9 + i for i in range(N_STEPS)]
    print(f"events: TensorBoard reads {n_records} records, {N_STEPS} points a curve: equal")


if __name__ == "__main__":
    main()
