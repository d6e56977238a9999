"""What a stage says, and how it ends."""

import logging

import pytest

from plm_depth.progress import stage_log
from plm_depth.tables import TableError


def test_a_foreseen_error_ends_in_one_message_with_the_name_of_the_stage():
    with pytest.raises(SystemExit) as ended, stage_log("some.stage", TableError, OSError):
        raise TableError("no such table")
    assert ended.value.code == "some.stage: no such table"


def test_any_other_error_is_a_defect_and_keeps_its_traceback():
    with pytest.raises(ValueError, match="a defect"), stage_log("some.stage", TableError):
        raise ValueError("a defect")


def test_the_log_has_the_name_of_the_stage(capsys):
    with stage_log("some.stage") as log:
        log.info("begins")
    assert isinstance(log, logging.Logger) and "some.stage: begins" in capsys.readouterr().err
