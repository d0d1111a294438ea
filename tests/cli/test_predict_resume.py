"""`resnet-backbones predict` after a kill, an interrupt or a full disk: repeated, it resumes."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from conftest import ROOT, write_coco
from helpers import predicted_images
from PIL import Image


@pytest.mark.slow
def test_a_killed_run_resumes_where_it_stopped(tmp_path, predict, detector_weights):
    write_coco(tmp_path, 60)
    journal = tmp_path / "out/predictions.jsonl"
    command = [sys.executable, "-m", "resnet_backbones", "predict", detector_weights, str(tmp_path / "images")]
    command += ["--output", str(tmp_path / "out"), "--batch-size", "1"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        if journal.exists() and journal.read_bytes().count(b"\n") > 10:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(journal, "a") as file:
        file.write('{"file_name": "59.png", "resu')  # the line being written
    done = journal.read_bytes().count(b"\n") - 1
    assert 10 <= done < 60
    pictures = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/images").iterdir()}

    status, _, err = predict(tmp_path / "images", "--tile", "30")
    assert status == 2
    assert "has the unfinished results of a command with tile None, which is now 30; choose another folder" in err
    status, out, _ = predict(tmp_path / "images", "--batch-size", "1")
    assert (status, f"{done} images are already in {journal}" in out) == (0, True)
    assert sum(path.stat().st_mtime_ns == time for path, time in pictures.items()) >= done
    killed = [(tmp_path / "out" / name).read_text() for name in ("predictions.json", "images.json")]
    assert predict(tmp_path / "images", "--batch-size", "1")[0] == 0
    assert killed == [(tmp_path / "out" / name).read_text() for name in ("predictions.json", "images.json")]
    assert not journal.exists()


@pytest.fixture
def small_files():
    """Limits files to 20 kB, like a full disk; calling it lifts the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_results_so_far(tmp_path, predict, small_files):
    write_coco(tmp_path, 30)
    for path in (tmp_path / "images").iterdir():  # so that the drawn images are small
        Image.new("RGB", (48, 40)).save(path)
    status, _, err = predict(tmp_path / "images")
    assert status == 2
    assert err.splitlines()[-1] == (
        f"error: {tmp_path}/out cannot be written: File too large. Results so far are kept; repeat the command to "
        "resume."
    )
    small_files()
    status, out, _ = predict(tmp_path / "images")
    assert status == 0
    assert 0 < int(re.search(r"^(\d+) images are already in ", out, flags=re.M)[1]) < 30
    assert len(predicted_images(tmp_path)) == 30


def test_unfinished_results_of_other_inputs_or_configs_are_refused(
    tmp_path, predict, detector_weights, small_files, standard_input, monkeypatch
):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        for k in range(30):
            Image.new("RGB", (48, 40)).save(tmp_path / folder / f"{k}.png")
    config = torch.load(detector_weights, weights_only=True)["metadata"]["config"]
    (tmp_path / "own.yaml").write_text(json.dumps(config))
    options = ["-", "--config", tmp_path / "own.yaml"]
    listed = "".join(f"{k}.png\n" for k in range(30)).encode()

    def run(folder="here", content=listed):
        monkeypatch.chdir(tmp_path / folder)
        standard_input(content)
        return predict(*options)

    assert run()[0] == 2
    small_files()
    for other in ({"folder": "there"}, {"content": listed[6:]}):
        status, _, err = run(**other)
        assert (status, "has the unfinished results of a command with inputs - (30 files, SHA-256 " in err) == (2, True)
    config["detector"]["box_nms_thresh"] = 0.4
    (tmp_path / "own.yaml").write_text(json.dumps(config))
    status, _, err = run()
    assert (status, "of a command with config" in err) == (2, True)
    config["detector"]["box_nms_thresh"] = 0.5
    (tmp_path / "own.yaml").write_text(json.dumps(config))
    status, out, _ = run()
    assert (status, "are already in" in out, len(predicted_images(tmp_path))) == (0, True, 30)


def test_an_interrupt_prints_one_line_and_keeps_the_results_so_far(tmp_path, predict):
    write_coco(tmp_path, 80)
    journal = tmp_path / "out/predictions.jsonl"

    def interrupt():
        while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    previous = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers ignore it
    threading.Thread(target=interrupt, daemon=True).start()
    status, _, err = predict(tmp_path / "images", "--batch-size", "1")
    signal.signal(signal.SIGINT, previous)
    assert (status, err.splitlines()[-1]) == (
        130,
        "interrupted. Results so far are kept; repeat the command to resume.",
    )
    assert "Traceback" not in err
    assert 3 <= journal.read_bytes().count(b"\n") < 80
