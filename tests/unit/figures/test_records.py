"""The table of records: the sample parted from its reserve, and which tool made the clusters."""

import pytest

from plm_depth.figures.records import main
from plm_depth.tables import CLUSTERS, LEFT_OUT, write_table


def options(folder, **metadata):
    write_table({"reason": ["sampled", "too_long"], "n_records": [10, 3]}, LEFT_OUT, folder / "left_out")
    write_table({"sequence_id": ["a", "b", "c"], "cluster_id": ["a", "a", "c"]}, CLUSTERS, folder / "c", **metadata)
    paths = {"--left-out": "left_out", "--clusters": "c", "--csv": "out.csv", "--html": "out.html"}
    words = [word for option, name in paths.items() for word in (option, str(folder / name))]
    return [*words, "--dataset", "mini", "--size", "4"]


def test_the_records_say_what_became_of_all_and_how_they_were_clustered(tmp_path):
    main(options(tmp_path, tool="mmseqs 14"))
    assert (tmp_path / "out.csv").read_text() == "reason,n_records\nsampled,4\nin_reserve,6\ntoo_long,3\n"
    assert "2 similarity clusters in the sample (tool mmseqs 14)" in (tmp_path / "out.html").read_text()


def test_a_damaged_table_ends_in_one_message(tmp_path):
    words = options(tmp_path)
    (tmp_path / "c").write_bytes(b"PAR1 cut")
    with pytest.raises(SystemExit, match=r"figures.records: .*c: not a readable Parquet file"):
        main(words)
    assert not (tmp_path / "out.html").exists()
