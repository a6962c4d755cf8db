"""The response log: commit, resume, damage."""

import json

import pytest

from retro.config.errors import ArtifactCorruptError, ArtifactMismatchError, ArtifactMissingError
from retro.eval.responses import RESPONSES_NAME, STATE_NAME, open_log, read_responses, read_state


def commit(log, number, finished=False):
    log.commit([{"n": number}, {"n": number, "text": "é\n"}], {"c": number}, {"on": 1.5}, {"on": 10}, finished, 2)


def test_blocks_are_appended_and_read_back(tmp_path):
    log = open_log(tmp_path, {"task": "t"}, {"model": "gpt"})
    commit(log, 0)
    commit(log, 1, finished=True)
    state = read_state(tmp_path)
    assert (state.blocks, state.units, state.finished, state.carry) == (2, 4, True, {"c": 1})
    assert state.seconds == {"on": 3.0} and state.tokens == {"on": 20}
    assert [row["n"] for row in read_responses(tmp_path, state)] == [0, 0, 1, 1]


@pytest.mark.parametrize("garbage", [b"", b'{"n": 1}\n', b'{"n": 1, "te'])
def test_bytes_of_an_uncommitted_block_are_cut_off(tmp_path, garbage):
    clean = tmp_path / "clean"
    log = open_log(clean, {"task": "t"}, {})
    commit(log, 0)
    commit(log, 1, finished=True)
    killed = tmp_path / "killed"
    log = open_log(killed, {"task": "t"}, {})
    commit(log, 0)
    with open(killed / RESPONSES_NAME, "ab") as file:
        file.write(garbage)
    log = open_log(killed, {"task": "t"}, {})
    assert log.state.blocks == 1 and log.state.carry == {"c": 0}
    commit(log, 1, finished=True)
    for name in (RESPONSES_NAME, STATE_NAME):
        assert (killed / name).read_bytes() == (clean / name).read_bytes()


def test_another_evaluation_is_refused_and_overwritten_only_on_demand(tmp_path):
    commit(open_log(tmp_path, {"task": "t", "material": {"seed": 1}}, {}), 0)
    with pytest.raises(ArtifactMismatchError, match=r"material.seed is 1 there, 2 here") as caught:
        open_log(tmp_path, {"task": "t", "material": {"seed": 2}}, {})
    assert "overwrite=true" in str(caught.value) and caught.value.exit_code == 3
    log = open_log(tmp_path, {"task": "t", "material": {"seed": 2}}, {}, overwrite=True)
    assert log.state.blocks == 0 and (tmp_path / RESPONSES_NAME).read_bytes() == b""


def test_facts_do_not_decide_whether_an_evaluation_is_the_same(tmp_path):
    commit(open_log(tmp_path, {"task": "t"}, {"checkpoint": "runs/a"}), 0)
    assert open_log(tmp_path, {"task": "t"}, {"checkpoint": "/abs/runs/a"}).state.blocks == 1


@pytest.mark.parametrize("damage", ["shorter", "altered"])
def test_damaged_responses_are_refused(tmp_path, damage):
    commit(open_log(tmp_path, {"task": "t"}, {}), 0)
    path = tmp_path / RESPONSES_NAME
    data = path.read_bytes()
    path.write_bytes(data[:-3] if damage == "shorter" else data.replace(b"0", b"7", 1))
    with pytest.raises(ArtifactCorruptError, match=RESPONSES_NAME):
        open_log(tmp_path, {"task": "t"}, {})
    with pytest.raises(ArtifactCorruptError, match=RESPONSES_NAME):
        read_responses(tmp_path, read_state(tmp_path))


def test_missing_and_unreadable_state(tmp_path):
    with pytest.raises(ArtifactMissingError, match="evaluation"):
        read_state(tmp_path)
    (tmp_path / STATE_NAME).write_text(json.dumps({"identity": {}})[:-1])
    with pytest.raises(ArtifactCorruptError, match=STATE_NAME):
        read_state(tmp_path)


def test_nan_never_reaches_the_file(tmp_path):
    log = open_log(tmp_path, {"task": "t"}, {})
    with pytest.raises(ValueError, match="JSON"):
        log.commit([{"bits": float("nan")}], None, {}, {}, False, 1)
    assert read_state(tmp_path).blocks == 0
