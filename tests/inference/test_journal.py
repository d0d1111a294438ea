"""The journal of a prediction: what is kept of a damaged one, and which files are refused."""

import json

import pytest

from resnet_backbones.errors import UserError
from resnet_backbones.inference.journal import Journal

COMMAND = {"weights": "best.pt"}


@pytest.fixture
def path(tmp_path):
    """A journal of the images a, b and c."""
    journal = Journal(tmp_path / "predictions.jsonl", COMMAND)
    for name in "abc":
        journal.add({"file_name": name, "results": []})
    journal.file.close()
    return journal.path


@pytest.mark.parametrize(
    "damage", [b"no JSON\n", b"\0" * 40 + b"\n", b"\0" * 40, b"[]\n", b"3\n", b"{}\n", b'{"file_na']
)
def test_run_resumes_before_the_first_damaged_line(path, damage):
    command, first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([command, first, damage, *others]))
    journal = Journal(path, COMMAND)
    assert [entry["file_name"] for entry in journal] == ["a"]
    journal.add({"file_name": "d", "results": []})
    assert [json.loads(line).get("file_name") for line in path.read_text().splitlines()] == [None, "a", "d"]


@pytest.mark.parametrize("content", [b"", b'{"comm', b'{"command": {"weights": "be\n{"file_name": "a"}\n'])
def test_journal_without_a_complete_command_starts_over(path, content):
    path.write_bytes(content)
    journal = Journal(path, COMMAND)
    assert len(journal) == 0
    assert json.loads(path.read_text()) == {"command": COMMAND}


@pytest.mark.parametrize("content", [b"mine\n", b'{"mine": 1}\n', b"\0" * 9])
def test_file_that_is_not_a_journal_is_refused_and_unchanged(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match="predictions.jsonl is not from an earlier prediction"):
        Journal(path, COMMAND)
    assert path.read_bytes() == content


def test_second_prediction_to_the_same_folder_is_refused(path):
    journal = Journal(path, COMMAND)
    with pytest.raises(UserError, match="Another prediction is writing to"):
        Journal(path, COMMAND)
    journal.remove()
    assert not path.exists()
